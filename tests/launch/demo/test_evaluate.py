"""What the evaluation counts, on detections made by hand; the command on a tiny model."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_model import quick_compilation, save_tiny_model

from data_pipelines.phantom.detectors import Detection
from data_pipelines.phantom.findings import FINDINGS, Finding
from launch.demo import evaluate
from launch.demo import measures as measures

EFFUSION = "Pleural effusion"


def case(*findings):
    names = [finding.name for finding in findings]
    return SimpleNamespace(findings=findings, labels=np.isin(FINDINGS, names))


def detection(score, left_minus_right=0.0):
    return Detection({name: score for name in FINDINGS}, {EFFUSION: left_minus_right})


def test_auroc_per_finding_is_the_share_of_ordered_pairs():
    cases = [case(Finding(EFFUSION, "left")), case(), case(Finding(EFFUSION, "right")), case()]
    found = [detection(score) for score in (3.0, 2.0, 1.0, 0.0)]
    rows = {row["finding"]: row for row in measures.finding_rows(cases, {"generated": found}, 0)}
    assert rows[EFFUSION]["positives"] == 2
    assert rows[EFFUSION]["generated"]["value"] == 3 / 4  # one of the four pairs is inverted


def test_side_counts_only_what_is_asked_on_one_side(monkeypatch):
    monkeypatch.setattr(measures, "SIDED", (EFFUSION,))
    sides = ("left", "right", "left", "bilateral")
    cases = [case(Finding(EFFUSION, side)) for side in sides]
    found = [detection(0, difference) for difference in (0.5, -0.1, -0.2, 3.0)]
    (row,) = measures.side_rows(cases, {"generated": found})
    assert row == {"finding": EFFUSION, "asked": 3, "generated": 2}


@pytest.mark.parametrize("swap", measures.SWAPS, ids=lambda swap: f"{swap.finding} {swap.by_side}")
def test_evidence_rises_when_the_second_prompt_is_followed(swap):
    """To the other side, or to the finding that only the second prompt names."""
    one = Detection({name: 0.0 for name in FINDINGS}, dict.fromkeys(measures.SIDED, 0.0))
    first, second = (
        Detection(
            one.score | ({} if swap.by_side else {swap.finding: evidence}),
            one.left_minus_right | ({swap.finding: lateral} if swap.by_side else {}),
        )
        for evidence, lateral in ((0.2, 1.0), (0.9, -1.0))
    )
    assert swap.value(second) > swap.value(first)
    assert ("left" in swap.before and "right" in swap.after) is swap.by_side
    assert all(finding.side in (None, "left") for finding in swap.findings if swap.by_side)


def test_interpolation_keeps_a_plane():
    y, x = np.meshgrid(np.arange(6.0), np.arange(6.0), indexing="ij")
    enlarged = measures.interpolate((10 * y + x)[None], 12)[0]
    centres = (np.arange(12) + 0.5) / 2 - 0.5
    expected = 10 * centres[:, None] + centres
    np.testing.assert_allclose(enlarged[1:-1, 1:-1], expected[1:-1, 1:-1], atol=1e-5)


@pytest.fixture(scope="module", autouse=True)
def compilation():
    with quick_compilation():
        yield


@pytest.mark.long
@pytest.mark.slow
def test_command_writes_tables_and_continues(tmp_path, monkeypatch, capsys):
    model = save_tiny_model(tmp_path / "tiny")
    monkeypatch.setattr("gct_jax.runtime.compilation_cache.enable_compilation_cache", lambda: None)
    monkeypatch.setattr(evaluate, "SWAP_SEEDS", 2)
    out = tmp_path / "out"
    arguments = ["--model", str(model), "--out", str(out), "--prompts", "3", "--superres", "1"]
    arguments += ["--compare-steps", "1", "--temperature", "2.5"]
    assert evaluate.main(arguments) == 0
    table = (out / "table.md").read_text()
    assert table.strip() in capsys.readouterr().out
    assert all(re.search(rf"^\| {name} \|", table, re.MULTILINE) for name in FINDINGS)
    found = json.loads((out / "metrics.json").read_text())
    assert found["run"]["temperature"] == 2.5 and "temperature 2.5, model" in table
    assert found["run"]["prompts"] == 3 and len(found["swaps"]) == len(measures.SWAPS)
    assert [row["steps"] for row in found["steps"]] == [1, found["run"]["steps"]]
    sides = sum(row["generated"] for row in found["sides"])
    assert found["steps"][-1]["side_correct"] == sides  # the model's own number of steps
    drawn = {row["finding"] for row in found["findings"] if row["generated"]["value"] >= 0.9}
    asked = sum(row["asked"] for row in found["sides"] if row["finding"] in drawn)
    assert f"| those generated with AUROC >= 0.9 | {asked} |" in table
    assert (out / "montage.png").stat().st_size > 500

    kept = {path: path.stat().st_mtime_ns for path in (out / "volumes").iterdir()}
    assert evaluate.main(arguments) == 0
    assert kept == {path: path.stat().st_mtime_ns for path in (out / "volumes").iterdir()}
    assert (out / "table.md").read_text() == table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompts", "1"], "--prompts must be at least 2"),
        (["--compare-steps", "4", "0"], "--compare-steps: '0' is not a whole number from 1"),
        (["--steps", "0"], "--steps: '0' is not a whole number from 1"),
        (["--steps", "-1"], "--steps: '-1' is not a whole number from 1"),
        (["--temperature", "nan"], "--temperature: 'nan' is not a number"),
    ],
)
def test_impossible_counts_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_missing_model_is_refused(tmp_path, capsys):
    assert evaluate.main(["--model", str(tmp_path / "none")]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err

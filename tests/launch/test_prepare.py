"""Preparing as a command, and what training does with it."""

import dataclasses

import numpy as np
import pytest
from tiny_model import quick_compilation, save_tiny_model

from configs import tiny
from data_pipelines.phantom.source import PhantomSource
from gct_jax.config import override
from gct_jax.runtime.lock import locked
from gct_jax.training.stages import join_components
from launch import data, prepare, train

BALLS = "data.source=ball_source:Balls"
FEW = ["data.cases=16", "data.held_out=8", "data.slices_per_case=2"]


@pytest.fixture(scope="module", autouse=True)
def quick():
    with quick_compilation():
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def command(stage, *words):
    return ["--config", f"configs/tiny.py:{stage}", BALLS, *FEW, *map(str, words)]


PAIRS = {
    "ctvit": ["ctvit.counterfactual_pairs=True"],
    "maskgit": ["maskgit.counterfactual_pairs=True"],
    "superres": [],
}


@pytest.mark.parametrize("stage", PAIRS)
def test_prepared_and_rendered_cases_make_the_same_batches(model, tmp_path, stage, capsys):
    pool = tmp_path / "pool"
    words = command(stage, "--from", model, *PAIRS[stage])
    assert prepare.main([*words, "--out", str(pool)]) == 0
    assert f"16 cases for stage {stage}; data.folder={pool}" in capsys.readouterr().out
    before = {path.name: path.stat().st_mtime_ns for path in pool.iterdir()}
    assert prepare.main([*words, "--out", str(pool)]) == 0
    assert {path.name: path.stat().st_mtime_ns for path in pool.iterdir()} == before

    config = override(getattr(tiny, stage)(), [BALLS, *FEW, *PAIRS[stage]])
    components = join_components(config.model, [model])
    config = dataclasses.replace(config, model=components.config)
    made = []
    for folder in ("", str(pool)):
        chosen = dataclasses.replace(config, data=dataclasses.replace(config.data, folder=folder))
        cases = data.check_data(chosen, components, "")
        opened = data.stage_data(chosen, cases, tmp_path, components, "", range)
        held_out = [batch for _, batch in opened.held_out]
        made.append([next(opened.batches(3)), *held_out, opened.shown])
    for rendered, read in zip(*made, strict=True):
        assert rendered.keys() == read.keys()
        for name, rows in rendered.items():
            np.testing.assert_array_equal(rows, read[name], name)


def refused(capsys, main, *words):
    assert main(list(map(str, words))) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_training_on_what_is_missing_names_the_command(model, tmp_path, capsys):
    words = command("maskgit", "--from", model, "--workdir", tmp_path / "w")
    line = refused(capsys, train.main, *words, f"data.folder={tmp_path / 'pool'}")
    expected = f"python -m launch.prepare --config configs/tiny.py:maskgit --from {model} --out "
    assert "lacks 1 of 1 shards of volumes-5x16" in line and expected + str(tmp_path) in line
    assert line.endswith("data.cases=16 data.held_out=8 data.slices_per_case=2")
    assert not (tmp_path / "pool").exists() and not (tmp_path / "w" / "config.json").exists()


def test_a_folder_of_other_cases_is_refused(tmp_path, capsys):
    pool = tmp_path / "pool"
    words = command("ctvit")
    assert prepare.main([*words, "--out", str(pool)]) == 0
    wider = ["model.volume.pixel_spacing_mm=40.0", f"data.folder={pool}"]
    line = refused(capsys, train.main, *words, *wider, "--workdir", tmp_path / "w")
    assert "low_spacing_mm = [60.0, 22.5, 22.5], not [60.0, 40.0, 40.0]" in line


def test_only_a_single_process_renders_as_it_goes_and_only_the_phantom(monkeypatch, tmp_path):
    config = override(tiny.ctvit(), [BALLS, *FEW])
    components = join_components(config.model, [])
    data.check_data(config, components, "PREPARE")
    monkeypatch.setattr("jax.process_count", lambda: 2)
    with pytest.raises(Exception, match="2 processes train on prepared cases only: PREPARE"):
        data.check_data(config, components, "PREPARE")
    data.check_data(override(config, ["data.folder=pool"]), components, "PREPARE")
    monkeypatch.undo()
    monkeypatch.setattr(PhantomSource, "rendered", False)
    with pytest.raises(Exception, match="must be prepared first: PREPARE"):
        data.check_data(config, components, "PREPARE")


def test_one_writer_of_a_folder_at_a_time(tmp_path, capsys):
    with locked(tmp_path / "pool"):
        line = refused(capsys, prepare.main, *command("ctvit"), "--out", tmp_path / "pool")
    assert "pool is in use by process" in line


def test_stage_t5_needs_no_preparing(tmp_path, capsys):
    line = refused(capsys, prepare.main, *command("t5"), "--out", tmp_path / "pool")
    assert "stage t5 reads reports, which need no preparing" in line
    assert not (tmp_path / "pool").exists()


def test_a_counterfactual_of_another_patient_is_refused(monkeypatch):
    monkeypatch.setattr(
        "ball_source.Balls.patient", lambda self, case: f"{case} of {self._describe.__name__}"
    )
    config = override(tiny.ctvit(), [BALLS, *FEW, "ctvit.counterfactual_pairs=True"])
    with pytest.raises(Exception, match="case 0 and its counterfactual are not of one patient"):
        data.check_data(config, join_components(config.model, []), "")

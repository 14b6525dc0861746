"""From a config file to a model folder, on the tiny model and phantom."""

import json
import os
import re
import shutil
import signal

import numpy as np
import pytest
from tiny_model import quick_compilation

from configs import tiny
from data_pipelines import batches
from gct_jax.components import present_components
from gct_jax.config import override
from gct_jax.model_folder import load_model
from gct_jax.runtime.lock import locked
from gct_jax.training.stages import Components, load_components
from launch import arrays, data, export_model, train
from launch.arrays import open_cases

BALLS = "data.source=ball_source:Balls"
PLAIN = "data.source=ball_source:Plain"
ADVERSARIAL = [
    "ctvit.adversarial=True",
    "ctvit.discriminator_base_dim=2",
    "ctvit.discriminator_every=2",
    "ctvit.discriminator_start_step=4",
    "ctvit.penalty_every=1",
    "loop.log_every=1",
]


@pytest.fixture(scope="module", autouse=True)
def quick():
    with quick_compilation():
        yield


def run(folder, stage, sources=(), overrides=()):
    workdir = folder / stage
    arguments = ["--config", f"configs/tiny.py:{stage}", "--workdir", str(workdir)]
    for name in sources:
        arguments += ["--from", str(folder / name)]
    arguments += [
        "loop.mesh=[1, 1, 1]",
        "loop.checkpoint_every=0",
        BALLS,
        *overrides,
    ]
    assert train.main(arguments) == 0
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def together(test):
    """For tests of the runs below, which take minutes; a file's tests run in one worker."""
    return pytest.mark.long(test)


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    """All stages trained and exported, in "folder"; what each stage logged, by its name."""
    folder = tmp_path_factory.mktemp("run")
    muon = ["optimizer.algorithm=muon", "optimizer.learning_rate=0.02"]
    logged = {
        "folder": folder,
        "ctvit": run(folder, "ctvit", overrides=ADVERSARIAL),
        "t5": run(folder, "t5", overrides=muon),
        "maskgit": run(folder, "maskgit", ["ctvit", "t5"], ["maskgit.critic=self"]),
        "superres": run(folder, "superres", ["ctvit", "maskgit"]),
    }
    sources = [str(folder / stage) for stage in ("ctvit", "maskgit", "superres")]
    assert export_model.main([*sources, "--out", str(folder / "model")]) == 0
    return logged


@pytest.fixture(scope="module")
def folder(metrics):
    return metrics["folder"]


@together
def test_stages_learn_and_make_a_model_folder(metrics, folder):
    steps = [entry for entry in metrics["ctvit"] if "loss" in entry]
    assert steps[-1]["reconstruction"] < 0.5 * steps[0]["reconstruction"]
    assert {"codebook/usage", "codebook/perplexity", "norm/gradient", "learning_rate"} <= set(
        steps[0]
    )
    # the discriminator waits for step 4 (counted from 0), then takes every second turn
    assert [entry["step"] for entry in steps if entry["discriminator"]] == list(range(6, 21, 2))
    assert [entry["step"] for entry in steps if entry["adversarial_weight"]] == list(range(5, 21))

    t5 = metrics["t5"]
    assert t5[-1]["eval/loss"] < 0.8 * t5[0]["loss"]
    assert not (folder / "t5" / "samples").exists()

    maskgit = metrics["maskgit"]
    assert maskgit[-1]["eval/cross_entropy"] < 0.5 * maskgit[0]["cross_entropy"]
    assert maskgit[0]["critic"] > 0

    superres = metrics["superres"]
    assert superres[-1]["eval/loss"] < superres[0]["loss"]
    for stage in ("ctvit", "maskgit", "superres"):
        assert {path.name for path in (folder / stage / "samples").iterdir()} == {
            f"0000020_{window}.png" for window in ("raw", "lung", "mediastinal")
        }

    model = load_model(folder / "model")
    for component in present_components(model.config):
        assert model.variables(component)["params"]
    assert model.tokenizer.size <= model.config.t5.vocab_size


@together
def test_a_finished_run_is_not_continued(folder):
    before = run(folder, "maskgit", ["ctvit", "t5"], ["maskgit.critic=self"])
    assert before[-1]["step"] == 20
    # The defaults of sampling are no part of what is trained.
    again = ["maskgit.critic=self", "model.sampling.guidance=2.0"]
    assert run(folder, "maskgit", ["ctvit", "t5"], again) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "configs/none.py:ctvit"], "no file 'configs/none.py'"),
        (["--config", f"{'long' * 100}.py:ctvit"], f"{'long' * 100}.py: File name too long"),
        (["--config", "configs/tiny.py:vae"], "has no configuration 'vae'"),
        (["--config", "configs/tiny.py:ctvit", "loop.step=3"], "'loop.step': no such"),
        (["--config", "configs/tiny.py:maskgit"], "needs CT-ViT: --from"),
        (["--config", "configs/tiny.py:maskgit", "--from", "nowhere"], "nowhere"),
        (["--config", "configs/tiny.py:maskgit", "--from", "long" * 100], "File name too long"),
        (["--config", "configs/tiny.py:ctvit", "data.held_out=24"], "leaves none of 24"),
        (
            ["--config", "configs/tiny.py:ctvit", "data.source=ct"],
            "'ct' is none of phantom, ct_rate",
        ),
        (["--config", "configs/tiny.py:ctvit", "data.source=nowhere:CTs"], "named 'nowhere'"),
        (["--config", "configs/tiny.py:ctvit", "data.source=ball_source:CTs"], "attribute 'CTs'"),
        (
            ["--config", "configs/tiny.py:ctvit", PLAIN, "ctvit.counterfactual_pairs=True"],
            "with other findings",
        ),
        (["--config", "configs/tiny.py:t5", PLAIN], "has none"),
        (["--config", "configs/tiny.py:t5", "t5.attributes=3"], "t5.attributes = 3"),
        (["--config", "configs/tiny.py:ctvit", "data.held_out=7"], "holds out 7 cases, fewer than"),
        (["--config", "configs/tiny.py:ctvit", "model.volume.slices=6"], "slices = 6"),
        (["--config", "configs/tiny.py:ctvit", "loop.mesh=[3, 3, 1]"], "8 devices"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys, arguments, message):
    assert train.main([*arguments, "--workdir", str(tmp_path / "w")]) == 2
    printed = capsys.readouterr().err.strip().splitlines()[-1]
    assert printed.startswith("launch.train: error: ") and message in printed
    assert not (tmp_path / "w").exists()


# --- A run that goes on is the same run


def refused(capsys, folder, *arguments):
    """The line with which a start in `folder` is refused; the folder stays as it was."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert train.main([*arguments, "--workdir", str(folder)]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("launch.train: error: ")
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert after == before
    return line


CTVIT = ["--config", "configs/tiny.py:ctvit", "loop.mesh=[1, 1, 1]", BALLS]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        (["model.ctvit.dim=32"], ["model.ctvit.dim 16 -> 32"]),
        (["optimizer.algorithm=muon"], ["optimizer.algorithm 'adamw' -> 'muon'"]),
        (["ctvit.lung_weight=0.5"], ["ctvit.lung_weight 0.0 -> 0.5"]),
        (["loop.seed=1", "data.cases=25"], ["loop.seed 0 -> 1", "data.cases 24 -> 25"]),
        (["optimizer.learning_rate=1e-4", "loop.steps=30"], ["optimizer.learning_rate"]),
        (["dtype=bfloat16"], ["dtype 'float32' -> 'bfloat16'"]),
    ],
)
@together
def test_what_must_not_change_is_named(folder, capsys, changes, names):
    workdir = folder / "ctvit"
    line = refused(capsys, workdir, *CTVIT, *ADVERSARIAL, *changes)
    assert all(name in line for name in names) and "--accept-changes" in line
    assert "loop.steps" not in line
    assert load_components(workdir).config.ctvit.dim == 16


@together
def test_a_state_that_does_not_fit_is_refused_before_anything_is_written(folder, capsys):
    changes = ["optimizer.algorithm=muon", "--accept-changes"]
    line = refused(capsys, folder / "ctvit", *CTVIT, *ADVERSARIAL, *changes)
    assert "holds another opt_state" in line


@together
def test_another_stage_is_refused(folder, capsys):
    assert "run of stage ctvit, not t5" in refused(
        capsys, folder / "ctvit", "--config", "configs/tiny.py:t5"
    )


@pytest.mark.long
def test_length_and_rhythm_may_change_with_a_note(tmp_path, capsys):
    quick = ["loop.steps=2", "data.cases=16", "optimizer.schedule=cosine"]
    run(tmp_path, "t5", overrides=quick)
    capsys.readouterr()
    again = [*quick, "loop.steps=4", "loop.log_every=1", "loop.keep_checkpoints=1"]
    assert run(tmp_path, "t5", overrides=again)[-1]["step"] == 4
    told = capsys.readouterr().err
    assert "note: the run goes on with loop.steps 2 -> 4" in told
    assert "note: the cosine schedule changes with loop.steps" in told
    accepted = [*again, "loop.steps=5", "optimizer.weight_decay=0.1"]
    arguments = ["--config", "configs/tiny.py:t5", "--workdir", str(tmp_path / "t5"), BALLS]
    arguments += ["loop.mesh=[1, 1, 1]", *accepted]
    assert train.main(arguments) == 2
    assert train.main([*arguments, "--accept-changes"]) == 0
    assert json.loads((tmp_path / "t5/config.json").read_text())["optimizer"]["weight_decay"]


@pytest.mark.long
def test_a_stopped_run_says_so_and_is_not_taken_for_a_finished_one(tmp_path, capsys, monkeypatch):
    make = batches.volume_batch

    def stopping(sources, cases):
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        calls.append(cases)
        return make(sources, cases)

    calls: list = []
    monkeypatch.setattr(batches, "volume_batch", stopping)
    arguments = [*CTVIT, "--workdir", str(tmp_path / "ctvit"), "data.cases=16", "loop.steps=9"]
    assert train.main(arguments) == 75
    said = capsys.readouterr().err.strip().splitlines()[-1]
    step = json.loads((tmp_path / "ctvit/status.json").read_text())["step"]
    assert (
        said
        == f"launch.train: stopped at step {step} of 9 and saved; run the same command to go on"
    )
    assert json.loads((tmp_path / "ctvit/status.json").read_text())["state"] == "stopped"
    assert not (tmp_path / "ctvit/run.lock").exists()

    export = [str(tmp_path / "ctvit"), "--out", str(tmp_path / "model")]
    assert export_model.main(export) == 2
    assert f"is at step {step} of 9" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
    later = ["--config", "configs/tiny.py:maskgit", "--from", str(tmp_path / "ctvit")]
    assert train.main([*later, "--workdir", str(tmp_path / "m")]) == 2
    assert "--allow-unfinished" in capsys.readouterr().err
    assert export_model.main([*export, "--allow-unfinished"]) == 0

    assert train.main(arguments) == 0
    assert json.loads((tmp_path / "ctvit/status.json").read_text()) == {
        "state": "finished",
        "step": 9,
        "steps": 9,
    }
    assert export_model.main(export) == 0


@together
def test_the_same_command_twice_is_refused(folder, capsys):
    with locked(folder / "ctvit"):
        assert train.main([*CTVIT, "--workdir", str(folder / "ctvit")]) == 2
    assert "is in use by process" in capsys.readouterr().err


# --- What belongs together stays together


@pytest.fixture(scope="module")
def strangers(folder, tmp_path_factory):
    """A CT-ViT of another seed, and the model folder of the first runs."""
    other = tmp_path_factory.mktemp("other")
    run(other, "ctvit", overrides=["loop.seed=5", "loop.steps=2"])
    sources = [str(folder / stage) for stage in ("ctvit", "maskgit", "superres")]
    assert export_model.main([*sources, "--out", str(other / "model")]) == 0
    return other


@together
def test_a_model_of_strangers_is_not_exported(folder, strangers, tmp_path, capsys):
    for networks in (
        [strangers / "ctvit", folder / "maskgit"],
        [folder / "maskgit", folder / "superres", strangers / "ctvit"],
        [strangers / "model", strangers / "ctvit"],
    ):
        arguments = [*map(str, networks), "--out", str(tmp_path / "m")]
        assert export_model.main(arguments) == 2
        assert re.search("(maskgit|critic) was trained with another ctvit", capsys.readouterr().err)
        assert not (tmp_path / "m").exists()
    arguments = [str(folder / name) for name in ("ctvit", "maskgit", "superres", "t5")]
    assert export_model.main([*arguments, "--out", str(tmp_path / "m")]) == 2
    assert "trained with another t5" in capsys.readouterr().err


@together
def test_a_run_does_not_go_on_with_strangers(folder, strangers, capsys):
    sources = ["--from", str(strangers / "ctvit"), "--from", str(folder / "t5")]
    arguments = ["--config", "configs/tiny.py:maskgit", *sources, "maskgit.critic=self", BALLS]
    line = refused(capsys, folder / "maskgit", *arguments, "loop.mesh=[1, 1, 1]")
    assert "ctvit " in line and " -> " in line


@together
def test_provenance_goes_through_model_folders(folder, strangers, tmp_path):
    model = load_model(strangers / "model")
    trained = load_components(folder / "maskgit").provenance
    found = model.provenance
    assert found.identities["maskgit"] == trained.identities["maskgit"]
    assert found.trained_with["maskgit"] == trained.trained_with["maskgit"]
    assert set(found.trained_with["maskgit"]) == {"critic", "ctvit", "t5", "tokenizer"}
    assert set(found.trained_with["critic"]) == {"maskgit", "ctvit", "t5", "tokenizer"}
    assert set(found.trained_with["superres"]) == {"ctvit", "t5", "tokenizer"}
    again = [str(folder / "maskgit"), str(strangers / "model"), "--out", str(tmp_path / "m")]
    assert export_model.main(again) == 0
    assert load_model(tmp_path / "m").provenance == found


@together
def test_damaged_checkpoints_are_one_line_of_an_export(folder, tmp_path, capsys):
    shutil.copytree(folder / "ctvit", tmp_path / "ctvit")
    path = tmp_path / "ctvit/checkpoints/20"
    shutil.copytree(path, tmp_path / "ctvit/checkpoints/19")
    shutil.rmtree(path / "ema.ctvit")
    assert export_model.main([str(tmp_path / "ctvit"), "--out", str(tmp_path / "model")]) == 2
    (told,) = capsys.readouterr().err.strip().splitlines()
    assert "checkpoint 19" in told and "no other is whole" in told


# --- Ids of large codebooks


@pytest.mark.parametrize(
    ("codes", "expected"),
    [(32, "uint8"), (256, "uint8"), (257, "uint16"), (40_000, "uint16"), (65_537, "uint32")],
)
def test_ids_have_room_in_what_they_are_stored_as(codes, expected):
    kind = arrays.smallest_id_type(codes)
    assert np.dtype(kind).name == expected
    assert int(np.array(codes - 1).astype(kind)) == codes - 1


def test_held_out_batches_have_cases_and_wordings_of_their_own(tmp_path, monkeypatch):
    """The last cases, whole batches of them, in the wording of step 0."""
    asked = []

    def maker(*_):
        return lambda step, rows: asked.append((step, [row.case for row in rows])) or {}

    monkeypatch.setattr(data, "batch_maker", maker)
    options = ["data.cases=20", "data.held_out=9", "loop.batch_size=4", "loop.seed=3"]
    config = override(tiny.ctvit(), options)
    made = data.stage_data(
        config, open_cases(config), tmp_path, Components(config.model, {}, None), "", range
    )
    batches_held_out = [[11, 12, 13, 14], [15, 16, 17, 18], [19]]
    assert asked == [*((0, cases) for cases in batches_held_out), (0, [11, 12, 13, 14])]
    assert [rows for rows, _ in made.held_out] == [4, 4, 1]
    assert made.cases_of(5).startswith("cases ")
    asked.clear()
    stream = made.batches(5)
    for _ in range(3):
        next(stream)
    assert [step for step, _ in asked] == [5, 6, 7]
    assert all(len(cases) == 4 and max(cases) < 11 for _, cases in asked)

    asked.clear()  # with counterfactual pairs a case gives two rows
    pairs = override(config, ["ctvit.counterfactual_pairs=True"])
    made = data.stage_data(
        pairs, open_cases(pairs), tmp_path, Components(config.model, {}, None), "", range
    )
    assert [cases for _, cases in asked[:5]] == [
        *([11, 11, 12, 12], [13, 13, 14, 14], [15, 15, 16, 16], [17, 17, 18, 18]),
        [19, 19],
    ]
    assert [rows for rows, _ in made.held_out] == [4, 4, 4, 4, 2]
    asked.clear()
    for step in range(5):
        next(made.batches(step))
    assert len({case for _, cases in asked for case in cases}) == 10  # no case twice so far

    asked.clear()  # of several processes each makes its rows
    half = data.stage_data(
        pairs,
        open_cases(pairs),
        tmp_path,
        Components(config.model, {}, None),
        "",
        lambda n: [1, 2][: n - 1],
    )
    asked.clear()
    next(half.batches(0))
    next(made.batches(0))
    assert asked[0][1] == asked[1][1][1:3]


def test_an_export_fixes_the_numerics_and_needs_a_device(tmp_path, capsys, monkeypatch):
    prepared = []
    monkeypatch.setattr("gct_jax.runtime.numerics.prepare_jax", prepared.append)
    assert export_model.main([str(tmp_path / "absent"), "--out", str(tmp_path / "m")]) == 2
    assert prepared == ["launch.export_model"]
    assert "absent" in capsys.readouterr().err

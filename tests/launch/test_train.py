"""From a config file to a model folder, on the tiny model and phantom."""

import json

import numpy as np
import pytest
from tiny_model import quick_compilation

from data_pipelines.phantom import pool
from gct_jax.model_folder import load_model
from gct_jax.parts import PARTS
from launch import export_model, train

ADVERSARIAL = [
    "ctvit.adversarial=True",
    "ctvit.discriminator_base_dim=2",
    "ctvit.discriminator_every=2",
    "ctvit.discriminator_start_step=4",
    "ctvit.penalty_every=1",
    "loop.log_every=1",
]


def bright_balls(grid, describe):
    """Stands in for the phantom's renderer, which takes seconds to compile."""
    z, y, x = (
        axis.reshape(-1, *[1] * n) for axis, n in zip(grid.axes_mm(), (2, 1, 0), strict=True)
    )

    def volume(case):
        radius = 60 + 10 * (case % 9)
        return np.where(z**2 + y**2 + x**2 < radius**2, 40, -900).astype(np.int16)

    return volume


@pytest.fixture(scope="module", autouse=True)
def quick():
    with quick_compilation(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "renderer", bright_balls)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


def run(folder, stage, sources=(), overrides=()):
    workdir = folder / stage
    arguments = ["--config", f"configs/tiny.py:{stage}", "--workdir", str(workdir)]
    for name in sources:
        arguments += ["--from", str(folder / name)]
    arguments += [
        "loop.mesh=[1, 1, 1]",
        "loop.checkpoint_every=0",
        f"data.folder={folder / 'pool'}",
        *overrides,
    ]
    assert train.main(arguments) == 0
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_stages_learn_and_make_a_model_folder(folder):
    ctvit = run(folder, "ctvit", overrides=ADVERSARIAL)
    steps = [entry for entry in ctvit if "loss" in entry]
    assert steps[-1]["reconstruction"] < 0.5 * steps[0]["reconstruction"]
    assert {"codebook/usage", "codebook/perplexity", "norm/gradient", "learning_rate"} <= set(
        steps[0]
    )
    # the discriminator waits for step 4 (counted from 0), then takes every second turn
    assert [entry["step"] for entry in steps if entry["discriminator"]] == list(range(6, 21, 2))
    assert [entry["step"] for entry in steps if entry["adversarial_weight"]] == list(range(5, 21))

    t5 = run(folder, "t5", overrides=["optimizer.algorithm=muon", "optimizer.learning_rate=0.02"])
    assert t5[-1]["eval/loss"] < 0.8 * t5[0]["loss"]
    assert not (folder / "t5" / "samples").exists()

    maskgit = run(folder, "maskgit", ["ctvit", "t5"], ["maskgit.critic=self"])
    assert maskgit[-1]["eval/cross_entropy"] < 0.5 * maskgit[0]["cross_entropy"]
    assert maskgit[0]["critic"] > 0

    superres = run(folder, "superres", ["ctvit", "maskgit"])
    assert superres[-1]["eval/loss"] < superres[0]["loss"]
    for stage in ("ctvit", "maskgit", "superres"):
        assert {path.name for path in (folder / stage / "samples").iterdir()} == {
            f"0000020_{window}.png" for window in ("raw", "lung", "mediastinal")
        }

    sources = [str(folder / stage) for stage in ("ctvit", "maskgit", "superres")]
    assert export_model.main([*sources, "--out", str(folder / "model")]) == 0
    model = load_model(folder / "model")
    for part in PARTS:
        assert model.variables(part)["params"]
    assert model.tokenizer.size <= model.config.t5.vocab_size


def test_a_principal_start_rebuilds_from_the_first_step(tmp_path):
    overrides = ["loop.steps=1", "loop.log_every=1", "ctvit.continuous_steps=1"]
    drawn = run(tmp_path / "drawn", "ctvit", overrides=overrides)
    started = run(tmp_path / "start", "ctvit", overrides=[*overrides, "ctvit.principal_start=16"])
    assert started[0]["reconstruction"] < 0.1 * drawn[0]["reconstruction"]


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
        (["--config", "configs/tiny.py:ctvit", "model.volume.slices=6"], "slices = 6"),
        (["--config", "configs/tiny.py:ctvit", "loop.mesh=[3, 3, 1]"], "8 devices"),
        (["--config", "configs/tiny.py:ctvit", "ctvit.principal_start=17"], "16 training cases"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys, arguments, message):
    assert train.main([*arguments, "--workdir", str(tmp_path / "w")]) == 2
    printed = capsys.readouterr().err.strip().splitlines()[-1]
    assert printed.startswith("launch.train: error: ") and message in printed
    assert not (tmp_path / "w").exists()


def test_workdir_of_another_model_is_refused(folder, capsys):
    arguments = ["--config", "configs/tiny.py:ctvit", "--workdir", str(folder / "ctvit")]
    assert train.main([*arguments, "model.ctvit.dim=32"]) == 2
    assert "another model" in capsys.readouterr().err

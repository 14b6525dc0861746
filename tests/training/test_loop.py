"""The loop on a small regression: resume, watchdog, signals, checkpoints on another mesh."""

import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest
from line_stage import RULES, RUN, STAGE, batch_of, batches, init_state, leaves, run

from gct_jax import sharding
from gct_jax.errors import ConfigError, GctError
from gct_jax.training import loop
from gct_jax.training.checkpoint import Checkpoints


@pytest.fixture(autouse=True)
def parameter_rules(monkeypatch):
    monkeypatch.setattr(sharding, "PARAMETER_RULES", RULES)


def test_resumed_run_equals_uninterrupted_run_bit_for_bit(tmp_path):
    image = np.full((4, 4), 7, np.uint8)
    whole = run(
        tmp_path / "a",
        held_out=[loop.HeldOut(8, batch_of(99))],
        sample_images=lambda s: {"seven": image},
    )

    def interrupted(start):
        for i, batch in enumerate(batches(start)):
            if i == 7:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    stopped = run(tmp_path / "b", stream=interrupted)
    assert int(stopped.step) == 8
    resumed = run(tmp_path / "b")
    for a, b in zip(leaves(whole), leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)

    logged = [json.loads(line) for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in logged if "loss" in entry]
    assert len(losses) == 7 and losses[-1] < 0.5 * losses[0]
    assert [entry["step"] for entry in logged if "eval/loss" in entry] == [6, 12]
    assert sorted(p.name for p in (tmp_path / "a/samples").iterdir()) == [
        "0000006_seven.png",
        "0000012_seven.png",
    ]
    assert list((tmp_path / "a/tensorboard").iterdir())
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "b/metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [2, 4, 5, 6, 8, 10, 12]  # log_every 2, checkpoint_every 5, no step twice


def test_checkpoint_restores_on_another_mesh_and_only_the_last_are_kept(tmp_path):
    config = dataclasses.replace(RUN, checkpoint_every=3)
    saved = loop.train(STAGE, dataclasses.replace(config, mesh=(2, 2, 2)), tmp_path, batches)
    # and the first, as no evaluation has shown yet that a later one is sane
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [3, 9, 12]

    mesh = sharding.make_mesh((1, 1, 4), jax.devices()[:4])
    abstract = jax.eval_shape(init_state, jax.random.key(0), None)
    shardings = sharding.state_shardings(abstract, mesh)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        restored = checkpoints.restore(loop.with_shardings(abstract, shardings))
    assert restored.params["line"]["kernel"].sharding.mesh.shape["tensor"] == 4
    for a, b in zip(leaves(saved), leaves(restored), strict=True):
        np.testing.assert_array_equal(a, b)


def test_one_device_and_eight_give_the_same_losses(tmp_path):
    states = [run(tmp_path / str(i), mesh=mesh) for i, mesh in enumerate([(8, 1, 1), (1, 4, 2)])]
    for a, b in zip(*map(leaves, states), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_watchdog_names_the_metric_and_step_and_saves_nothing(tmp_path):
    def poisoned(start):
        for step, batch in enumerate(batches(start), start + 1):
            yield {**batch, "y": batch["y"] * np.float32(np.nan)} if step == 3 else batch

    with pytest.raises(GctError, match=r"loss is nan at step 3"):
        run(tmp_path, stream=poisoned)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_an_evaluation_that_is_not_finite_names_the_step(tmp_path):
    bad = batch_of(99) | {"y": np.full((8, 2), np.nan, np.float32)}
    with pytest.raises(GctError, match=r"loss is nan at step 6 \(its batch: held out\)"):
        run(tmp_path, held_out=[loop.HeldOut(8, bad)])


def test_an_evaluation_counts_every_row_once(tmp_path):
    """A short last batch, which no mesh splits, counts by its rows."""
    whole = batch_of(99)
    parts = [
        loop.HeldOut(n, {name: x[first : first + n] for name, x in whole.items()})
        for first, n in ((0, 4), (4, 3), (7, 1))
    ]
    logged = {}
    for mesh in [(1, 1, 1), (2, 2, 2), (1, 1, 8)]:
        folder = tmp_path / str(mesh)
        run(folder, steps=2, mesh=mesh, held_out=parts)
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        logged[mesh] = json.loads(lines[-1])["eval/loss"]
    assert logged[2, 2, 2] == pytest.approx(logged[1, 1, 1], rel=1e-5)
    assert logged[1, 1, 8] == pytest.approx(logged[1, 1, 1], rel=1e-5)


def test_mesh_that_does_not_fit_the_devices_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"\(3, 3, 1\).*8 devices"):
        run(tmp_path, mesh=(3, 3, 1))


def test_batch_that_does_not_fit_the_mesh_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"batch_size = 8 .* = 3 devices"):
        run(tmp_path, mesh=(3, 1, 1))


def test_how_a_run_ends_is_told(tmp_path):
    told = []

    def poisoned(start):
        for step, batch in enumerate(batches(start), start + 1):
            yield {**batch, "y": batch["y"] * np.float32(np.nan)} if step == 3 else batch

    def stopped(start):
        for step, batch in enumerate(batches(start), start + 1):
            if step == 2:
                os.kill(os.getpid(), signal.SIGHUP)
            yield batch

    with pytest.raises(GctError, match="nan"):
        run(tmp_path / "a", stream=poisoned, on_change=lambda *change: told.append(change))
    run(tmp_path / "b", stream=stopped, on_change=lambda *change: told.append(change))
    run(tmp_path / "b", on_change=lambda *change: told.append(change))
    assert ("saved", 5) in told
    assert [status for status, _ in told if status != "saved"] == [
        *("running", "diverged"),
        *("running", "stopped"),
        *("running", "finished"),
    ]
    assert told[3][1] == told[4][1] in (2, 3)
    assert told[-1] == ("finished", 12)


@pytest.mark.parametrize("later", [signal.SIGTERM, signal.SIGINT])
def test_signals_that_follow_do_not_lose_the_save(tmp_path, later, monkeypatch):
    def interrupted(start):
        for i, batch in enumerate(batches(start)):
            if i == 3:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), later)
            yield batch

    wait = Checkpoints.wait

    def slow_wait(self):  # while the save is written
        os.kill(os.getpid(), later)
        wait(self)

    monkeypatch.setattr(Checkpoints, "wait", slow_wait)
    stopped = run(tmp_path, stream=interrupted)
    assert int(stopped.step) == 4
    monkeypatch.undo()
    monkeypatch.setattr(sharding, "PARAMETER_RULES", RULES)
    for a, b in zip(leaves(run(tmp_path)), leaves(run(tmp_path / "whole")), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_host_waits_for_the_step_before(tmp_path, monkeypatch):
    """So that signals and progress do not run ahead of the device by more than one step."""
    waited = []
    monkeypatch.setattr(loop.jax, "block_until_ready", lambda window: waited.append(list(window)))
    run(tmp_path, steps=4)
    assert [[step for step, _ in window] for window in waited] == [[], [1], [], [3]]


def test_the_state_is_donated_and_what_is_not_is_told(tmp_path, capsys, monkeypatch):
    run(tmp_path / "a", steps=2)
    assert "held twice" not in capsys.readouterr().err
    jitted = loop.jitted_train_step

    def copying(*arguments):
        step = jitted(*arguments)
        return lambda state, *more: step(jax.tree.map(lambda x: x.copy(), state), *more)

    monkeypatch.setattr(loop, "jitted_train_step", copying)
    run(tmp_path / "b", steps=2)
    assert "arrays of the state (0.0 MB) are held twice" in capsys.readouterr().err


def test_what_the_state_is_made_of_is_told_at_the_start(tmp_path, capsys):
    run(tmp_path, steps=2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].split() == ["part", "arrays", "numbers", "MB", "MB", "a", "device"]
    assert lines[1].split()[:3] == ["params.line", "1", "8"]
    table = (tmp_path / "parameters.txt").read_text().splitlines()
    assert table[1].split()[:3] == ["line/kernel", "(4,", "2)"] and "fsdp, tensor" in table[1]


def test_steps_are_profiled(tmp_path):
    run(tmp_path, steps=8, profile_step=3)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_third_interrupt_ends_at_once(tmp_path):
    def interrupted(start):
        for batch in batches(start):
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stream=interrupted)


def test_a_metrics_file_that_was_cut_is_mended(tmp_path):
    run(tmp_path, steps=5)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"step": 5, "lo')
    run(tmp_path, steps=8)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert path.read_text().startswith(whole)
    assert [entry["step"] for entry in lines if "loss" in entry] == [2, 4, 5, 6, 8]

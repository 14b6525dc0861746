"""The loop on a small regression: resume, watchdog, signals, checkpoints on another mesh."""

import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gct_jax import sharding
from gct_jax.errors import ConfigError, GctError
from gct_jax.training import loop
from gct_jax.training.checkpoint import Checkpoints
from gct_jax.training.config import LoopConfig, OptimizerConfig
from gct_jax.training.optimizer import apply_gradients, make_optimizer, update_average
from gct_jax.training.state import TrainState

OPTIMIZER = OptimizerConfig(learning_rate=0.05, warmup_steps=3, schedule="cosine", ema_decay=0.9)
RUN = LoopConfig(
    steps=12, batch_size=8, log_every=2, eval_every=6, sample_every=6, checkpoint_every=5
)
TRUTH = np.arange(4, dtype=np.float32)


def init_state(key, pretrained):
    params = {"line": {"kernel": jax.random.normal(key, (4, 2))}}
    return TrainState(
        step=jnp.int32(0),
        key=key,
        params=params,
        ema=params,
        opt_state={"line": make_optimizer(OPTIMIZER, RUN.steps).init(params)},
        extra={},
    )


def loss_fn(params, batch, key):
    noise = 0.1 * jax.random.normal(key, batch["y"].shape)
    error = batch["x"] @ params["line"]["kernel"] - batch["y"] - noise
    return jnp.mean(error**2)


def train_step(state, batch, key):
    loss, grads = jax.value_and_grad(loss_fn)(state.params, batch, key)
    params, opt_state, norms = apply_gradients(
        make_optimizer(OPTIMIZER, RUN.steps), grads, state.opt_state["line"], state.params
    )
    ema = update_average(state.ema, params, state.step, OPTIMIZER.ema_decay)
    state = state.replace(params=params, ema=ema, opt_state={"line": opt_state})
    return state, {"loss": loss, **norms}


def eval_step(state, batch, key):
    return {"loss": loss_fn(state.ema, batch, key)}


STAGE = loop.Stage(init_state, train_step, eval_step)


def batch_of(step):
    rng = np.random.default_rng([1, step])
    x = rng.standard_normal((8, 4), dtype=np.float32)
    return {"x": x, "y": np.stack([x @ TRUTH, -x @ TRUTH], -1)}


def batches(start):
    step = start
    while True:
        yield batch_of(step)
        step += 1


@pytest.fixture(autouse=True)
def parameter_rules(monkeypatch):
    monkeypatch.setattr(sharding, "PARAMETER_RULES", ((r"line/kernel$", P("fsdp", "tensor")),))


def leaves(state):
    trees = (state.step, jax.random.key_data(state.key), state.params, state.ema, state.opt_state)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(trees)]


def run(folder, steps=RUN.steps, mesh=(2, 2, 2), stream=batches, **options):
    config = dataclasses.replace(RUN, steps=steps, mesh=mesh)
    return loop.train(STAGE, config, folder, stream, **options)


def test_resumed_run_equals_uninterrupted_run_bit_for_bit(tmp_path):
    image = np.full((4, 4), 7, np.uint8)
    whole = run(tmp_path / "a", held_out=[batch_of(99)], sample_images=lambda s: {"seven": image})

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
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [9, 12]

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


def test_mesh_that_does_not_fit_the_devices_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"\(3, 3, 1\).*8 devices"):
        run(tmp_path, mesh=(3, 3, 1))


def test_batch_that_does_not_fit_the_mesh_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"batch_size = 8 .* = 3 devices"):
        run(tmp_path, mesh=(3, 1, 1))


def test_restoring_without_a_checkpoint_names_the_folder(tmp_path):
    abstract = jax.eval_shape(init_state, jax.random.key(0), None)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(GctError, match=str(tmp_path)):
        checkpoints.restore(abstract)

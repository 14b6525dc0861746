"""A stage small enough for a test: noisy linear regression, through the real loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from gct_jax.training import loop
from gct_jax.training.config import LoopConfig, OptimizerConfig
from gct_jax.training.optimizer import apply_gradients, make_optimizer, update_ema
from gct_jax.training.state import TrainState

RULES = ((r"line/kernel$", P("fsdp", "tensor")),)
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
    ema = update_ema(state.ema, params, state.step, OPTIMIZER.ema_decay)
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


def leaves(state):
    trees = (state.step, jax.random.key_data(state.key), state.params, state.ema, state.opt_state)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(trees)]


def run(folder, steps=RUN.steps, mesh=(2, 2, 2), stream=batches, **options):
    """Train in `folder`; the state at the end."""
    config = dataclasses.replace(RUN, steps=steps, mesh=mesh)
    return loop.train(STAGE, config, folder, stream, **options)

"""Training in bfloat16: the same losses but for rounding, parameters and state in float32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from tiny_model import random_variables

from configs import tiny
from gct_jax.training.stages import make_stage


def batch_of(config):
    model, rng = config.model, np.random.default_rng(0)
    rows = 4
    text = rng.integers(1, model.t5.vocab_size, (rows, model.t5.max_length), dtype=np.int32)
    size, slices = model.volume.image_size, model.volume.slices
    if config.stage == "ctvit":
        return {"volume": rng.uniform(-1, 1, (rows, slices, size, size, 1)).astype(np.float32)}
    if config.stage == "maskgit":
        patch, frames = model.ctvit.patch_size, model.ctvit.temporal_patch_size
        grid = (rows, 1 + (slices - 1) // frames, size // patch, size // patch)
        ids = rng.integers(0, model.maskgit.num_tokens, grid, dtype=np.int32)
        return {"token_ids": ids, "text_ids": text}
    large = model.diffusion.image_size
    return {
        "low_res": rng.uniform(-1, 1, (rows, size, size, 1)).astype(np.float32),
        "high_res": rng.uniform(-1, 1, (rows, large, large, 1)).astype(np.float32),
        "text_ids": text,
    }


def stage_and_state(config, dtype):
    stage = make_stage(dataclasses.replace(config, dtype=dtype))
    # not the initial weights of the U-Net, whose last layer is zero
    components = [
        component
        for component in ("ctvit", "maskgit", "superres", "t5")
        if component in (config.stage, "t5")
    ]
    pretrained = {component: random_variables(config.model, component) for component in components}
    return stage, quick_jit(stage.init_state)(jax.random.key(0), pretrained)


@pytest.mark.parametrize("name", ["ctvit", "maskgit", "superres"])
@pytest.mark.long
def test_losses_are_close(name):
    # 8 bits of precision in every layer: 3 %
    config = getattr(tiny, name)()
    losses = {}
    for dtype in ("float32", "bfloat16"):
        stage, state = stage_and_state(config, dtype)
        metrics = quick_jit(stage.eval_step)(state, batch_of(config), jax.random.key(1))
        losses[dtype] = float(metrics["loss"])
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.03)
    assert losses["bfloat16"] != losses["float32"]  # it did compute in another type


@pytest.mark.long
def test_a_step_leaves_the_state_in_float32():
    config = tiny.maskgit()
    stage, state = stage_and_state(config, "bfloat16")
    after, _ = quick_jit(stage.train_step)(state, batch_of(config), jax.random.key(1))
    leaves = jax.tree.leaves((after.params, after.ema, after.opt_state))
    assert all(leaf.dtype in (jnp.float32, jnp.int32) for leaf in leaves)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in leaves)
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), after.params, state.params)
    assert all(jax.tree.leaves(moved))

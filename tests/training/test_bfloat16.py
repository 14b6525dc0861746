"""Training in bfloat16: the same losses but for rounding, parameters and state in float32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit

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


@pytest.mark.parametrize("name", ["ctvit", "maskgit", "superres"])
def test_a_step_in_bfloat16(name):
    config = getattr(tiny, name)()
    batch, key = batch_of(config), jax.random.key(1)
    losses = {}
    for dtype in ("float32", "bfloat16"):
        stage = make_stage(dataclasses.replace(config, dtype=dtype))
        state = quick_jit(stage.init_state)(jax.random.key(0), {})
        after, metrics = quick_jit(stage.train_step)(state, batch, key)
        losses[dtype] = float(metrics["loss"])
        for leaf in jax.tree.leaves((after.params, after.ema, after.opt_state)):
            assert leaf.dtype != jnp.bfloat16
            if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                assert bool(jnp.all(jnp.isfinite(leaf)))
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.03)
    assert losses["bfloat16"] != losses["float32"]  # it did compute in another type

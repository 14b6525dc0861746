"""A state and a batch of each stage of the tiny model, with random weights of a sensible size."""

import jax
import jax.numpy as jnp
import numpy as np
from tiny_model import random_variables

from configs import tiny
from gct_jax.components import present_components
from gct_jax.config import override
from gct_jax.training.stages import make_stage

KEY = jax.random.key(1)


def stage_config(stage, *overrides):
    """Of configs/tiny.py, CT-ViT with its discriminator."""
    return override(getattr(tiny, stage)(), ["ctvit.adversarial=True", *overrides])


def stage_state(config):
    """A fresh state."""
    start = {
        component: jax.tree.map(
            lambda x: jnp.asarray(0.2 * x), random_variables(config.model, component)
        )
        for component in present_components(tiny.model())
    }
    return make_stage(config).init_state(KEY, start)


def stage_batch(config):
    """Eight rows with what any stage reads."""
    rng = np.random.default_rng(0)
    return {
        "volume": rng.uniform(-1, 1, (8, 5, 16, 16, 1)).astype(np.float32),
        "token_ids": rng.integers(0, 32, (8, 3, 2, 2), dtype=np.int32),
        "text_ids": rng.integers(1, 128, (8, 48), dtype=np.int32),
        "attributes": rng.integers(-1, 2, (8, config.t5.attributes), dtype=np.int32),
        "low_res": rng.uniform(-1, 1, (8, 8, 8, 1)).astype(np.float32),
        "high_res": rng.uniform(-1, 1, (8, 32, 32, 1)).astype(np.float32),
    }

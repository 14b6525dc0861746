"""Optimizer of every stage: clip, AdamW or Muon, schedule; and the average of the weights.

lr(i)   = base * min(1, (i + 1) / warm-up) * (f + (1 - f) (1 + cos(pi p)) / 2)              (1)
p       = (i - warm-up) / (steps - warm-up), clipped to [0, 1]                              (2)
ema_i   = d_i ema_{i-1} + (1 - d_i) params_i,   d_i = min(decay, (1 + i) / (10 + i))        (3)
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import PyTree

from gct_jax.training.config import OptimizerConfig

# Size of an update beside Adam's, so that both share one learning rate (Liu et al. 2025, eq. 4).
MUON_UPDATE_RMS = 0.2
OUTPUT_LAYERS = r"(to_logits|pixels|position_bias/\w+|spatial_bias/\w+)/kernel$"


def learning_rate(config: OptimizerConfig, steps: int, step: jax.Array | int) -> jax.Array:
    """Equations (1), (2). Unlike the original's, the first update does not have rate 0."""
    rate = config.learning_rate * jnp.minimum(1.0, (step + 1) / max(config.warmup_steps, 1))
    if config.schedule == "cosine":
        span = max(steps - config.warmup_steps, 1)
        progress = jnp.clip((step - config.warmup_steps) / span, 0.0, 1.0)
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * progress))
        rate = rate * (config.final_fraction + (1 - config.final_fraction) * cosine)
    return rate


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clip by the global norm of the trained parameters, then AdamW or Muon; tensors of rank < 2
    (biases, norm scales) are not decayed."""

    def rate(step: jax.Array) -> jax.Array:
        return learning_rate(config, steps, step)

    def decayed(params: PyTree) -> PyTree:
        return jax.tree.map(lambda p: p.ndim >= 2, params)

    if config.algorithm == "muon":
        muon = optax.contrib.muon(
            rate,
            weight_decay=0.0,  # its own decays biases and norms too: their part of it has no mask
            adam_b1=config.b1,
            adam_b2=config.b2,
            adam_weight_decay=0.0,
            muon_weight_dimension_numbers=hidden_matrices,
            consistent_rms=MUON_UPDATE_RMS,
            # As close to orthogonal as five iterations from the Frobenius norm (Turbo-Muon,
            # arXiv:2512.04632), and a sixth of a CPU step's time is spent here.
            ns_steps=4,
            preconditioning="aol",
        )
        update = optax.chain(muon, decay_matrices(rate, config.weight_decay))
    else:
        update = optax.adamw(
            rate, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=decayed
        )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), update)


def decay_matrices(
    rate: Callable[[jax.Array], jax.Array], weight_decay: float
) -> optax.GradientTransformation:
    """Subtracts rate(i) * weight_decay * parameter from the updates of all tensors of rank >= 2, to
    follow an optimizer without a decay of its own."""

    def init(params: PyTree) -> optax.ScaleByScheduleState:
        return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

    def update(updates: PyTree, state: Any, params: PyTree) -> tuple[PyTree, PyTree]:
        factor = rate(state.count) * weight_decay
        decayed = jax.tree.map(lambda u, p: u - factor * p if p.ndim >= 2 else u, updates, params)
        return decayed, optax.ScaleByScheduleState(count=optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)


def slowed(part: str, factor: float) -> optax.GradientTransformation:
    """Multiplies the updates of the parameters under the name `part`, to follow an optimizer."""

    def update(updates: PyTree, params: PyTree) -> PyTree:
        return {
            name: jax.tree.map(lambda u: factor * u, tree) if name == part else tree
            for name, tree in updates.items()
        }

    return optax.stateless(update)


def hidden_matrices(params: PyTree) -> PyTree:
    """Muon's matrices: kernels between hidden units. Embeddings and output layers are Adam's."""

    def choose(path: tuple, p: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not name.endswith("kernel") or p.ndim not in (2, 4) or re.search(OUTPUT_LAYERS, name):
            return None
        inputs = tuple(range(p.ndim - 1))  # of a convolution: height, width, channels
        return optax.contrib.MuonDimensionNumbers(inputs, p.ndim - 1)

    return jax.tree_util.tree_map_with_path(choose, params)


def apply_gradients(
    optimizer: optax.GradientTransformation, grads: PyTree, opt_state: PyTree, params: PyTree
) -> tuple[Any, Any, dict[str, jax.Array]]:
    """One update. Returns new params, new optimizer state, and the three global norms."""
    updates, opt_state = optimizer.update(grads, opt_state, params)
    norms = {
        "norm/gradient": optax.tree.norm(grads),
        "norm/parameter": optax.tree.norm(params),
        "norm/update": optax.tree.norm(updates),
    }
    return optax.apply_updates(params, updates), opt_state, norms


def update_ema(ema: PyTree, params: PyTree, step: jax.Array, decay: float) -> PyTree:
    """Equation (3); `step` counts updates before this one."""
    warm = jnp.minimum(decay, (1 + step) / (10 + step))
    return optax.incremental_update(params, ema, 1 - warm)

"""Optimizer of every stage: clip, Adam(W), schedule; and the average of the weights.

lr(i)   = base * min(1, (i + 1) / warm-up) * (f + (1 - f) (1 + cos(pi p)) / 2)              (1)
p       = (i - warm-up) / (steps - warm-up), clipped to [0, 1]                              (2)
ema_i   = d_i ema_{i-1} + (1 - d_i) params_i,   d_i = min(decay, (1 + i) / (10 + i))        (3)
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gct_jax.training.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, steps: int, step: jax.Array | int) -> jax.Array:
    """Equations (1), (2). Unlike the reference, the first update does not have rate 0 (Q22)."""
    rate = config.learning_rate * jnp.minimum(1.0, (step + 1) / max(config.warmup_steps, 1))
    if config.schedule == "cosine":
        span = max(steps - config.warmup_steps, 1)
        progress = jnp.clip((step - config.warmup_steps) / span, 0.0, 1.0)
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * progress))
        rate = rate * (config.final_fraction + (1 - config.final_fraction) * cosine)
    return rate


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clip by the global norm of the trained parameters, then Adam; tensors of rank < 2 (biases,
    norm scales) are not decayed."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            lambda step: learning_rate(config, steps, step),
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim >= 2, params),
        ),
    )


def apply_gradients(
    optimizer: optax.GradientTransformation, grads: Any, opt_state: Any, params: Any
) -> tuple[Any, Any, dict[str, jax.Array]]:
    """One update. Returns new params, new optimizer state, and the three global norms."""
    updates, opt_state = optimizer.update(grads, opt_state, params)
    norms = {
        "norm/gradient": optax.tree.norm(grads),
        "norm/parameter": optax.tree.norm(params),
        "norm/update": optax.tree.norm(updates),
    }
    return optax.apply_updates(params, updates), opt_state, norms


def update_average(ema: Any, params: Any, step: jax.Array, decay: float) -> Any:
    """Equation (3); `step` counts updates before this one."""
    warm = jnp.minimum(decay, (1 + step) / (10 + step))
    return optax.incremental_update(params, ema, 1 - warm)

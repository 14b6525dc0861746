"""Classifier-free guidance (Ho and Salimans 2022), for tokens and for images:

guided = null + w (cond - null)                                                          (1)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from jaxtyping import Float

from gct_jax.array_types import Array


def guided(
    null: Float[Array, "*shape"], cond: Float[Array, "*shape"], scale: jax.Array | float
) -> Float[Array, "*shape"]:
    """Equation (1): classifier-free guidance with weight `scale`; 1 gives `cond`."""
    return null + scale * (cond - null)


def with_guidance(
    apply: Callable[[jax.Array, Any, jax.Array], jax.Array],
    context: Any,
    context_mask: jax.Array | None,
    scale: jax.Array | float,
) -> Callable[[jax.Array], jax.Array]:
    """A guided function of the ids alone, for `decode_step`, from a text-conditioned one.

    Both branches run as one batch; the null branch is the same text with every token masked.

    Args:
      apply: (ids [batch, T, height, width], context, context_mask) -> outputs [batch, T, ...], a
        MaskGIT or a critic with its weights.
      context: text embeddings [batch, length, width], or any tree of arrays [batch, ...] made of
        them once for all steps (`MaskGit.context_keys`).
      context_mask: bool [batch, length]; None only beside embeddings: all valid.
      scale: w of equation (1). The Python number 1 skips the null branch.
    """
    mask = jnp.ones(context.shape[:2], bool) if context_mask is None else context_mask
    if isinstance(scale, (int, float)) and scale == 1:
        return lambda ids: apply(ids, context, mask)
    # The pair of a sample stays adjacent, so that a batch spread over devices need not move.
    pair_context = jax.tree.map(lambda leaf: repeat(leaf, "b ... -> (b pair) ...", pair=2), context)
    pair_mask = rearrange(jnp.stack([mask, jnp.zeros_like(mask)], axis=1), "b pair l -> (b pair) l")

    def guided_fn(ids: jax.Array) -> jax.Array:
        outputs = apply(repeat(ids, "b ... -> (b pair) ...", pair=2), pair_context, pair_mask)
        cond, null = rearrange(outputs, "(b pair) ... -> pair b ...", pair=2)
        return guided(null, cond, scale)

    return guided_fn

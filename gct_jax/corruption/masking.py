"""The forward process of masked token modelling (MaskGIT, Chang et al. 2022, section 3).

With n tokens x_1..x_n of which the set M is masked:

  (1) masking ratio      r(p) = cos(pi p / 2),  progress p in [0, 1]
  (2) number masked      k    = max(1, round_half_even(r n))
  (3) training loss      L    = -1/|M| sum over i in M of log softmax(logits_i)[x_i]
  (4) Gumbel noise       g    = -ln(-ln(u + e) + e),  u ~ U[0, 1),  e = 1e-10
  (5) sampled token      y_i  = argmax(logits_i / temperature + g)
  (6) critic label       c_i  = 1 if the token that the critic reads differs from x_i, else 0

Random numbers are arguments wherever a result has to be reproducible from recorded ones.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Num

from gct_jax.array_types import Array, PerImage, RandomKey
from gct_jax.kernels.argmax import argmax

GUMBEL_EPSILON = 1e-10
MIN_TEMPERATURE = 1e-10  # keeps temperature 0 finite in float32; the noise then has no say


def mask_ratio(progress: jax.Array) -> jax.Array:
    """Equation (1): 1 at progress 0 (all tokens masked), 0 at progress 1. Any shape."""
    return jnp.cos(progress * (jnp.pi / 2))


def sample_mask_ratio(key: RandomKey, batch: int, levels: int | None = None) -> PerImage:
    """Draw one masking ratio per training sample, float32 [batch].

    Args:
      key: typed random key.
      batch: number of samples.
      levels: None draws the progress from U[0, 1), so that every ratio is met in training; an
        integer S draws it from {0, 1/S, .., (S-1)/S}, the S ratios a sampler of S steps visits
        (the published model, S = 18).
    """
    if levels is None:
        return mask_ratio(jax.random.uniform(key, (batch,)))
    return mask_ratio(jax.random.randint(key, (batch,), 0, levels) / levels)


def smallest(values: jax.Array, count: jax.Array | int) -> jax.Array:
    """True at the `count` smallest entries of every sample; among equals the first wins.

    Args:
      values: [batch, ...].
      count: scalar or int32 [batch].

    Returns:
      bool, shape of `values`.
    """
    flat = values.reshape(values.shape[0], -1)  # [batch, n]
    rank = jnp.argsort(jnp.argsort(flat, axis=1), axis=1)
    return (rank < jnp.reshape(count, (-1, 1))).reshape(values.shape)


def number_hidden(ratio: jax.Array, valid_count: jax.Array) -> jax.Array:
    """Equation (2), int32; both arguments [batch]."""
    return jnp.maximum(jnp.round(ratio * valid_count), 1).astype(jnp.int32)


def random_subset(
    uniforms: Float[Array, "batch *tokens"], ratio: PerImage, valid: Bool[Array, "batch *tokens"]
) -> Bool[Array, "batch *tokens"]:
    """Choose which tokens to hide, uniformly among the valid ones.

    Args:
      uniforms: independent draws from U[0, 1), float32 [batch, ...].
      ratio: share of the valid tokens to hide, float32 [batch].
      valid: bool, shape of `uniforms`; False marks padding.

    Returns:
      bool, shape of `uniforms`; in every sample exactly `number_hidden` valid tokens are True.
    """
    valid_count = valid.reshape(valid.shape[0], -1).sum(axis=1)  # [batch]
    draws = jnp.where(valid, uniforms, jnp.inf)  # padding ranks behind every valid token
    return smallest(draws, number_hidden(ratio, valid_count)) & valid


def reference_random_subset(uniforms: jax.Array, ratio: jax.Array, valid: jax.Array) -> jax.Array:
    """The subset that GenerateCT draws from the same uniforms. Arguments as `random_subset`.

    It compares argsort indices, not ranks, with the count, and shifts them by the number of padded
    tokens, so padding can be chosen. Use it only to reproduce that program.
    """
    flat = uniforms.reshape(uniforms.shape[0], -1)  # [batch, n]
    valid_count = valid.reshape(flat.shape).sum(axis=1)  # [batch]
    shifted = jnp.argsort(flat, axis=1) - (flat.shape[1] - valid_count)[:, None]
    chosen = (shifted >= 0) & (shifted < number_hidden(ratio, valid_count)[:, None])
    return chosen.reshape(uniforms.shape)


def masked_cross_entropy(
    logits: Float[Array, "*tokens codes"],
    ids: Int[Array, "*tokens"],
    weight: Num[Array, "*tokens"] | Bool[Array, "*tokens"],
) -> Float[Array, ""]:
    """Equation (3) over all masked tokens of the batch, scalar float32; 0 if none is masked.

    Args:
      logits: [batch, ..., num_tokens].
      ids: true tokens, int32 [batch, ...].
      weight: [batch, ...]: whether a token is masked, as bool, or how much it counts.
    """
    return jnp.sum(token_losses(logits, ids) * weight) / jnp.maximum(weight.sum(), 1)


def token_losses(
    logits: Float[Array, "*tokens codes"], ids: Int[Array, "*tokens"]
) -> Float[Array, "*tokens"]:
    """What equation (3) averages, float32 for each token. Arguments as `masked_cross_entropy`."""
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.take_along_axis(log_probs, ids[..., None], axis=-1)[..., 0]


def gumbel_noise(uniforms: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Equation (4), shape of `uniforms`."""
    return -jnp.log(-jnp.log(uniforms + GUMBEL_EPSILON) + GUMBEL_EPSILON)


def gumbel_argmax(
    logits: Float[Array, "*tokens codes"],
    uniforms: Float[Array, "*tokens codes"],
    temperature: jax.Array | float,
) -> Int[Array, "*tokens"]:
    """Equation (5): draw int32 [...] from softmax(logits / temperature).

    Args:
      logits: float32 [..., num_tokens].
      uniforms: draws from U[0, 1), shape of `logits`.
      temperature: scalar; 0 is the plain argmax.
    """
    scaled = logits / jnp.maximum(temperature, MIN_TEMPERATURE)
    return argmax(scaled + gumbel_noise(uniforms))


def critic_labels(
    shown_ids: Int[Array, "*tokens"], ids: Int[Array, "*tokens"]
) -> Float[Array, "*tokens"]:
    """Equation (6), float32 [batch, ...]: 1 where the critic reads a wrong token.

    Args:
      shown_ids: what the critic reads: sampled tokens where masked, true ones elsewhere. GenerateCT
        compares the tokens sampled at every position instead, and thereby calls visible true tokens
        fake; passing those gives its labels.
      ids: the true tokens.
    """
    return (shown_ids != ids).astype(jnp.float32)


def critic_loss(
    scores: Float[Array, "*tokens"], labels: Float[Array, "*tokens"], valid: Bool[Array, "*tokens"]
) -> Float[Array, ""]:
    """Binary cross entropy of critic logits, mean over valid tokens, scalar float32.

    Args:
      scores: logits of "this token is fake", [batch, ...].
      labels: 0 or 1, [batch, ...].
      valid: bool [batch, ...].
    """
    losses = critic_losses(scores, labels)
    return jnp.sum(losses, where=valid) / jnp.maximum(valid.sum(), 1)


def critic_losses(
    scores: Float[Array, "*tokens"], labels: Float[Array, "*tokens"]
) -> Float[Array, "*tokens"]:
    """What `critic_loss` averages, float32 for each token."""
    scores = scores.astype(jnp.float32)
    return jax.nn.softplus(scores) - scores * labels

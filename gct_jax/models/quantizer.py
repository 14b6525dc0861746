"""Cosine-similarity vector quantiser with a codebook learned by moving averages.

With x a latent, e_j the codebook rows and ^ the direction of a vector:

    id(x)  = argmax_j <x^, e_j^>                                                        (1)
    q(x)   = x + stop(e_id(x) - x)          (straight-through; the row itself, any norm) (2)

Moving averages of one batch with n_j latents of code j, s_j the sum of their directions and
decay a; N_j is the running cluster size:

    N_j <- a N_j + (1 - a) n_j                                                          (3)
    e_j <- (a N_j e_j + (1 - a) s_j) / (a N_j + (1 - a) n_j)       weighting = "count"  (4)
    e_j <- a e_j + (1 - a) (s_j if n_j > 0 else e_j)^              weighting = "code"   (5)

(4) is the running mean of van den Oord et al. 2017 (appendix A.1), in which a code seen once
moves less than a code seen often; an unused row stays. (5) is the rule of the PyTorch original.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from gct_jax.array_types import Array, Scalar
from gct_jax.errors import ConfigError
from gct_jax.kernels.argmax import argmax
from gct_jax.models.norms import l2_normalize

CHUNK_TOKENS = 512  # 16 MiB of similarities with 8,192 codes

# {"embedding": [codes, dim] float32, "cluster_size": [codes] float32}
Codebook = dict[str, Any]


def cosine_similarity(
    latents: Float[Array, "*tokens dim"], embedding: Float[Array, "codes dim"]
) -> Float[Array, "*tokens codes"]:
    """[..., dim] latents and [codes, dim] rows -> [..., codes] float32."""
    return jnp.einsum(
        "...d,kd->...k",
        l2_normalize(latents),
        l2_normalize(embedding),
        precision=lax.Precision.HIGHEST,  # ids must not depend on a device's fast matmul
    )


def nearest_codes(
    latents: Float[Array, "*tokens dim"], embedding: Float[Array, "codes dim"]
) -> Int[Array, "*tokens"]:
    """Equation (1): [batch, ..., dim] latents and [codes, dim] rows -> [batch, ...] int32.

    Similarities are held for `CHUNK_TOKENS` latents of each sample at a time, not for the volume.
    """
    flat = lax.stop_gradient(latents).reshape(latents.shape[0], -1, latents.shape[-1])

    def nearest(latents: jax.Array) -> jax.Array:  # [batch, dim]: the batch stays on its devices
        return argmax(cosine_similarity(latents, embedding))

    ids = lax.map(nearest, flat.swapaxes(0, 1), batch_size=CHUNK_TOKENS)  # [tokens, batch]
    return ids.swapaxes(0, 1).reshape(latents.shape[:-1])


def straight_through(
    latents: Float[Array, "*tokens dim"], codes: Float[Array, "*tokens dim"]
) -> Float[Array, "*tokens dim"]:
    """Equation (2): the value of `codes`, the gradient of `latents`."""
    return latents + lax.stop_gradient(codes - latents)


class CosineQuantizer(nn.Module):
    """The codebook (collection "codebook", not trained by gradients) and its two look-ups.

    Attributes:
      dim: width of latents and code rows.
      codebook_size: number of codes.
    """

    dim: int = 512
    codebook_size: int = 8192

    def setup(self):  # noqa: D102 (Flax hook)
        def random_directions():
            shape = (self.codebook_size, self.dim)
            return l2_normalize(jax.random.normal(self.make_rng("params"), shape))

        self.embedding = self.variable("codebook", "embedding", random_directions)
        self.cluster_size = self.variable(
            "codebook", "cluster_size", jnp.zeros, (self.codebook_size,)
        )

    def choose(self, latents: Float[Array, "*tokens dim"]) -> Int[Array, "*tokens"]:
        """[..., dim] -> [...] int32, equation (1)."""
        return nearest_codes(latents, self.embedding.value)

    def lookup(self, ids: Int[Array, "*tokens"]) -> Float[Array, "*tokens dim"]:
        """[...] int32 -> [..., dim] float32, the rows as they are."""
        return jnp.take(self.embedding.value, ids, axis=0)


def _valid(ids: jax.Array, token_mask: jax.Array | None) -> jax.Array:
    mask = jnp.ones(ids.shape, bool) if token_mask is None else token_mask
    return mask.reshape(-1)


def code_counts(
    ids: jax.Array, codebook_size: int, token_mask: jax.Array | None = None
) -> jax.Array:
    """How many (valid) tokens chose each code: [...] int32 -> [codes] float32."""
    weights = _valid(ids, token_mask).astype(jnp.float32)
    return jnp.zeros(codebook_size).at[ids.reshape(-1)].add(weights)


def ema_update(
    codebook: Codebook,
    latents: Float[Array, "*tokens dim"],
    ids: Int[Array, "*tokens"],
    *,
    decay: float | Scalar = 0.99,
    token_mask: Bool[Array, "*tokens"] | None = None,
    weighting: str = "count",
) -> Codebook:
    """One moving-average step of the codebook, equations (3) and (4) or (5).

    Args:
      codebook: embedding [codes, dim] and cluster_size [codes], float32.
      latents: [..., dim] encoder outputs; gradients do not pass.
      ids: [...] int32, their codes.
      decay: a of the equations, in [0, 1).
      token_mask: [...] bool; a False token has no part in the statistics.
      weighting: "count" for (4), "code" for (5), which the original trained with (decay 0.8).

    Returns:
      The new codebook.

    Raises:
      ConfigError: an unknown weighting.
    """
    embedding, cluster_size = codebook["embedding"], codebook["cluster_size"]
    directions = l2_normalize(lax.stop_gradient(latents)).reshape(-1, embedding.shape[1])
    valid = _valid(ids, token_mask)
    sums = jnp.zeros_like(embedding).at[ids.reshape(-1)].add(directions * valid[:, None])
    counts = code_counts(ids, embedding.shape[0], token_mask)
    old, new = decay * cluster_size, (1 - decay) * counts
    if weighting == "count":
        mean = (old[:, None] * embedding + (1 - decay) * sums) / jnp.maximum(
            old + new, jnp.finfo(jnp.float32).tiny
        )[:, None]
        embedding = jnp.where((counts > 0)[:, None], mean, embedding)
    elif weighting == "code":
        target = l2_normalize(jnp.where((counts > 0)[:, None], sums, embedding))
        embedding = decay * embedding + (1 - decay) * target
    else:
        raise ConfigError(f"weighting {weighting!r} is not one of 'count', 'code'")
    return {"embedding": embedding, "cluster_size": old + new}


def _random_directions(key, latents, count, token_mask):
    """Directions of `count` random valid latents, none twice as long as there are enough: of two
    equal rows rounding decides which one a token takes."""
    latents = l2_normalize(lax.stop_gradient(latents))
    flat = latents.reshape(-1, latents.shape[-1])
    valid = _valid(latents[..., 0], token_mask)
    rank = jnp.cumsum(valid) - 1  # among the valid latents, so that padding changes no draw
    draws = jax.random.uniform(key, rank.shape)[rank]
    order = jnp.argsort(jnp.where(valid, draws, jnp.inf))
    return flat[order[jnp.arange(count) % jnp.maximum(valid.sum(), 1)]]


def codebook_from_latents(
    key: jax.Array, latents: jax.Array, codebook_size: int, token_mask: jax.Array | None = None
) -> Codebook:
    """A first codebook of random encoder outputs.

    latents: [..., dim]; token_mask: [...] bool or None. Every code starts with the count that a
    uniform use of this batch would give it.
    """
    used = jnp.sum(_valid(latents[..., 0], token_mask)) / codebook_size
    return {
        "embedding": _random_directions(key, latents, codebook_size, token_mask),
        "cluster_size": jnp.full((codebook_size,), used, jnp.float32),
    }


def revive_dead_codes(
    key: jax.Array,
    codebook: Codebook,
    latents: jax.Array,
    *,
    threshold: float | Scalar = 0.1,
    token_mask: jax.Array | None = None,
) -> Codebook:
    """Replace codes that are hardly chosen by random latents of this batch.

    A code is dead when its cluster size is below `threshold` times the mean cluster size. A
    revived code starts with the mean, so that it has time to find its tokens.
    """
    embedding, cluster_size = codebook["embedding"], codebook["cluster_size"]
    mean = jnp.mean(cluster_size)
    dead = cluster_size < threshold * mean
    fresh = _random_directions(key, latents, embedding.shape[0], token_mask)
    return {
        "embedding": jnp.where(dead[:, None], fresh, embedding),
        "cluster_size": jnp.where(dead, mean, cluster_size),
    }


def codebook_usage(
    ids: jax.Array, codebook_size: int, token_mask: jax.Array | None = None
) -> dict[str, jax.Array]:
    """Scalars of one batch: "usage", the fraction of codes chosen at least once, and
    "perplexity", exp(entropy) of the choice, between 1 and codebook_size."""
    counts = code_counts(ids, codebook_size, token_mask)
    share = counts / jnp.maximum(jnp.sum(counts), 1)
    entropy = -jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.maximum(share, 1e-30)), 0.0))
    return {"usage": jnp.mean(counts > 0), "perplexity": jnp.exp(entropy)}

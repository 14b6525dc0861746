"""The T5 1.1 text encoder, with the parameter names and shapes of T5X.

Raffel et al. 2020 (relative position buckets), Shazeer 2020 (gated GELU):

    b[h, i, j] = table[h, bucket(j - i)]                                   (1)
    a          = softmax(q k^T + b),  no 1/sqrt(d): it is folded into q    (2)
    x         <- x + Out(a v),  with q, k, v from RMSNorm(x)               (3)
    x         <- x + Wo(gelu(W0 x') * W1 x'),  x' = RMSNorm(x)             (4)

One table of (1) serves all layers. Kernels are 2-D: the joined axis is heads-major.
"""

import math

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jax.typing import DTypeLike

from gct_jax.array_types import Sequences, Text, TextIds
from gct_jax.kernels.linear import linear
from gct_jax.sharding import constrain_batch

BUCKETS = 32
MAX_DISTANCE = 128
MASKED = -1e10  # added to logits: finite, so that a text of padding alone stays free of NaN

kernel_init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


def relative_position_bucket(offset: jax.Array) -> jax.Array:
    """Bucket in [0, 32) of `offset` = key position - query position, int32 of any shape.

    Each direction has 16 buckets: distances below 8 one each, then logarithmically wider ones up
    to distance 128, beyond which all share the last.
    """
    half = BUCKETS // 2
    exact = half // 2
    distance = jnp.abs(offset)
    octaves = jnp.log(jnp.maximum(distance, 1) / exact) / math.log(MAX_DISTANCE / exact)
    # The small addition keeps a distance on a bucket's edge (16, 32, ...) in the upper bucket.
    coarse = exact + jnp.floor(octaves * (half - exact) + 1e-5).astype(jnp.int32)
    bucket = jnp.where(distance < exact, distance, jnp.minimum(coarse, half - 1))
    return bucket + jnp.where(offset > 0, half, 0)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-6) * scale; the mean is taken in float32.

    Attributes:
      dtype: computation type; norms and softmax stay float32.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise the last axis."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + 1e-6)
        return wide.astype(self.dtype) * scale.astype(self.dtype)


class RelativePositionBias(nn.Module):
    """Equation (1): [heads, query, key] float32."""

    heads: int = 12

    @nn.compact
    def __call__(self, length: int) -> jax.Array:
        """Bias between all pairs of `length` positions."""
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        table = self.param("rel_embedding", init, (self.heads, BUCKETS))
        position = jnp.arange(length)
        bucket = relative_position_bucket(position[None, :] - position[:, None])
        return jnp.take(table, bucket, axis=1)


class Attention(nn.Module):
    """Equation (2); `bias` [batch, heads or 1, query, key] already holds the key mask.

    Attributes:
      dim_head: width of a head.
      dtype: computation type; norms and softmax stay float32.
    """

    heads: int = 12
    dim_head: int = 64
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        """[batch, length, dim] -> the same."""

        def project(name: str, init) -> jax.Array:
            width = self.heads * self.dim_head
            y = linear(width, self.dtype, name, init)(x)
            return rearrange(y, "b n (h k) -> b n h k", h=self.heads)

        query_init = nn.initializers.variance_scaling(1 / self.dim_head, "fan_in", "normal")
        query, key, value = (
            project("query", query_init),
            project("key", kernel_init),
            project("value", kernel_init),
        )
        logits = jnp.einsum("bqhk,bnhk->bhqn", query, key, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits + bias, axis=-1).astype(self.dtype)
        y = rearrange(jnp.einsum("bhqn,bnhk->bqhk", weights, value), "b n h k -> b n (h k)")
        return linear(x.shape[-1], self.dtype, "out", kernel_init)(y)


class GatedMLP(nn.Module):
    """Equation (4) without its norm; the GELU is the tanh form.

    Attributes:
      mlp_dim: hidden units of the gated network.
      dtype: computation type; norms and softmax stay float32.
    """

    mlp_dim: int = 2048
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Sequences) -> Sequences:
        """[batch, length, dim] -> the same."""
        gate = nn.gelu(linear(self.mlp_dim, self.dtype, "wi_0", kernel_init)(x), approximate=True)
        value = linear(self.mlp_dim, self.dtype, "wi_1", kernel_init)(x)
        return linear(x.shape[-1], self.dtype, "wo", kernel_init)(gate * value)


class EncoderLayer(nn.Module):
    """Equations (3) and (4).

    Attributes:
      heads: attention heads.
      dim_head: width of a head.
      mlp_dim: hidden units of the gated network.
      dtype: computation type; norms and softmax stay float32.
    """

    heads: int = 12
    dim_head: int = 64
    mlp_dim: int = 2048
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Sequences, bias: jax.Array) -> Sequences:
        """[batch, length, dim] -> the same."""
        attention = Attention(self.heads, self.dim_head, self.dtype, name="attention")
        mlp = GatedMLP(self.mlp_dim, self.dtype, name="mlp")
        x = x + attention(RMSNorm(self.dtype, name="pre_attention_layer_norm")(x), bias)
        return x + mlp(RMSNorm(self.dtype, name="pre_mlp_layer_norm")(x))


class Encoder(nn.Module):
    """The stack of layers, its shared position bias and the final norm.

    Attributes:
      depth: number of layers.
      heads: attention heads.
      dim_head: width of a head.
      mlp_dim: hidden units of the gated network.
      dtype: computation type; norms and softmax stay float32.
    """

    depth: int = 12
    heads: int = 12
    dim_head: int = 64
    mlp_dim: int = 2048
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        """[batch, length, dim], [batch, length] bool -> [batch, length, dim]."""
        bias = RelativePositionBias(self.heads, name="relpos_bias")(x.shape[1])
        # [batch, heads, query, key]
        bias = bias[None] + jnp.where(valid, 0.0, MASKED)[:, None, None, :]
        for i in range(self.depth):
            layer = EncoderLayer(
                self.heads, self.dim_head, self.mlp_dim, self.dtype, name=f"layers_{i}"
            )
            x = constrain_batch(layer(x, bias))
        return RMSNorm(self.dtype, name="encoder_norm")(x)


class T5Encoder(nn.Module):
    """Token ids to text embeddings.

    Attributes are those of `gct_jax.config.T5Config`; `dtype` is the compute type, parameters are
    float32. Position bias, logits, softmax and norms are float32 whatever `dtype` says.

    Attributes:
      vocab_size: entries of the embedding.
      dim: width of the embeddings.
      depth: number of layers.
      heads: attention heads.
      dim_head: width of a head.
      mlp_dim: hidden units of the gated network.
    """

    vocab_size: int = 32128
    dim: int = 768
    depth: int = 12
    heads: int = 12
    dim_head: int = 64
    mlp_dim: int = 2048
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, ids: TextIds) -> Text:
        """Embed texts padded with id 0.

        Args:
          ids: [batch, length] int32.

        Returns:
          [batch, length, dim] in `dtype`; rows of padding are exactly zero.
        """
        valid = ids > 0
        x = nn.Embed(
            self.vocab_size,
            self.dim,
            dtype=self.dtype,
            embedding_init=nn.initializers.normal(1.0),
            name="token_embedder",
        )(ids)  # [batch, length, dim]
        x = Encoder(
            self.depth, self.heads, self.dim_head, self.mlp_dim, self.dtype, name="encoder"
        )(x, valid)
        return jnp.where(valid[..., None], x, 0)

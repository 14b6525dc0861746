"""Attention of the super-resolution U-Net, over positions [batch, positions, channel].

Softmax attention has logits q.k / sqrt(dim_head), or 16 cos(q, k) with `cosine`. Linear attention
(Shen et al. 2021) replaces softmax(q k^T) v by

    softmax_features(q) s ( softmax_positions(k)^T v ),    s = dim_head^-1/2                 (1)

whose cost grows with the number of positions, not its square. A learned null key and value lets a
query attend to nothing.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Float

from gct_jax.array_types import Array, Queries, Sequences
from gct_jax.errors import ConfigError
from gct_jax.kernels.folded_attention import folded_attend, folding_saves
from gct_jax.kernels.gelu import gelu
from gct_jax.kernels.linear import as_positions, linear
from gct_jax.models.norms import l2_normalize, layer_norm

COSINE_SCALE = 16.0


def split_heads(x: Array, heads: int) -> Array:
    """[batch, positions, heads * dim_head] to [batch, positions, heads, dim_head]."""
    return rearrange(x, "b n (h d) -> b n h d", h=heads)


def attend(
    query: Queries, key: Array, value: Array, cosine: bool
) -> Float[Array, "batch queries width"]:
    """Softmax attention; query [b, n, heads, d], key and value [b, m, heads or 1, d]. Returns
    [b, n, heads * d]."""
    scale = query.shape[-1] ** -0.5
    if cosine:
        query, key = (l2_normalize(x).astype(x.dtype) for x in (query, key))
        scale = COSINE_SCALE
    out = jax.nn.dot_product_attention(query, key, value, scale=scale)
    return rearrange(out, "b n h d -> b n (h d)")


def linear_attend(query: Array, key: Array, value: Array, scale: float) -> Array:
    """Equation (1); query [b, n, heads, d], key and value [b, m, heads, d]. Returns
    [b, n, heads * d]."""
    query = jax.nn.softmax(query.astype(jnp.float32), axis=-1).astype(value.dtype) * scale
    key = jax.nn.softmax(key.astype(jnp.float32), axis=1).astype(value.dtype)
    summary = jnp.einsum("bmhd,bmhe->bhde", key, value)
    return rearrange(jnp.einsum("bnhd,bhde->bnhe", query, summary), "b n h d -> b n (h d)")


class Kernel(nn.Module):
    """The matrix of a linear map without bias, to be applied by the caller.

    Attributes:
      features: output channels.
      dtype: computation type; norms and softmax stay float32.
    """

    features: int = 64
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, width: int) -> Array:
        """[width, features] in `dtype`."""
        shape = (width, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        return kernel.astype(self.dtype)


class NullKeyValue(nn.Module):
    """One learned key and value, shared by all heads, put before the others."""

    @nn.compact
    def __call__(self, key: Array, value: Array) -> tuple[Array, Array]:
        """Key and value [b, m, heads, d] to [b, 1 + m, heads, d]."""
        batch, _, heads, dim_head = key.shape
        null = self.param("key_value", nn.initializers.normal(1.0), (2, dim_head))
        null_key, null_value = jnp.broadcast_to(
            null[:, None, None, None].astype(key.dtype), (2, batch, 1, heads, dim_head)
        )
        return jnp.concatenate([null_key, key], 1), jnp.concatenate([null_value, value], 1)


class CrossAttention(nn.Module):
    """Positions of an image attend to conditioning tokens, which are never masked.

    With `linear`, equation (1); its scale is then 1 where `cosine` is set, and no cosine is taken.

    Attributes:
      heads: attention heads.
      dim_head: width of a head.
      backend: "auto" folds the projections into the tokens where that saves something, which on a
        TPU has reverse mode only; "dense" never does.
      dtype: computation type; norms and softmax stay float32.
    """

    heads: int = 8
    dim_head: int = 64
    cosine: bool = False
    linear: bool = False
    backend: str = "auto"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *positions channels"], tokens: Array
    ) -> Float[Array, "batch *positions channels"]:
        """Positions [b, n, c], or a map [b, h, w, c], and tokens [b, m, e] to an array like them.

        Raises:
          ConfigError: an unknown backend.
        """
        if self.backend not in ("auto", "dense"):
            raise ConfigError(f"backend {self.backend!r} of the U-Net is neither auto nor dense")
        shape, channels, width = x.shape, x.shape[-1], self.heads * self.dim_head
        folds = (
            self.backend == "auto"
            and not (self.linear or self.cosine)
            and folding_saves(channels, tokens.shape[1] + 1, self.dim_head)
        )
        if len(shape) > 3:
            x = as_positions(x) if folds else x.reshape(shape[0], -1, channels)
        x = layer_norm("norm", self.dtype, use_bias=False)(x)
        key = split_heads(linear(width, self.dtype, "key")(tokens), self.heads)
        value = split_heads(linear(width, self.dtype, "value")(tokens), self.heads)
        key, value = NullKeyValue(name="null")(key, value)
        query_kernel = Kernel(width, self.dtype, name="query")(channels)
        out_kernel = Kernel(channels, self.dtype, name="out")(width)
        if folds:
            out = folded_attend(x, key, value, query_kernel, out_kernel)
        else:
            query = split_heads(x @ query_kernel, self.heads)
            if self.linear:
                scale = 1.0 if self.cosine else self.dim_head**-0.5
                out = linear_attend(query, key, value, scale)
            else:
                out = attend(query, key, value, self.cosine)
            out = out @ out_kernel
        return layer_norm("out_norm", self.dtype, use_bias=False)(out).reshape(shape)


class SelfAttention(nn.Module):
    """Positions attend to the tokens (if given), a null pair and each other; one key and value
    head serves all query heads (Shazeer 2019).

    Attributes:
      dim_head: width of a head.
      cosine: logits are 16 times the cosine of query and key.
      dtype: computation type; norms and softmax stay float32.
    """

    heads: int = 8
    dim_head: int = 64
    cosine: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Sequences, tokens: Array | None) -> Sequences:
        """Positions [b, n, c] and tokens [b, m, e] to [b, n, c]."""
        channels = x.shape[-1]
        x = layer_norm("norm", self.dtype, use_bias=False)(x)
        query = linear(self.heads * self.dim_head, self.dtype, "query")(x)
        key = linear(self.dim_head, self.dtype, "key")(x)[:, :, None]
        value = linear(self.dim_head, self.dtype, "value")(x)[:, :, None]
        key, value = NullKeyValue(name="null")(key, value)
        if tokens is not None:
            tokens = layer_norm("context_norm", self.dtype)(tokens)
            token_key = nn.Dense(self.dim_head, dtype=self.dtype, name="context_key")(tokens)
            token_value = nn.Dense(self.dim_head, dtype=self.dtype, name="context_value")(tokens)
            key = jnp.concatenate([token_key[:, :, None], key], axis=1)
            value = jnp.concatenate([token_value[:, :, None], value], axis=1)
        out = attend(split_heads(query, self.heads), key, value, self.cosine)
        out = linear(channels, self.dtype, "out")(out)
        return layer_norm("out_norm", self.dtype, use_bias=False)(out)


class LinearSelfAttention(nn.Module):
    """Equation (1) over a map and the tokens (if given); queries, keys and values of the map pass
    a depthwise 3x3 convolution first.

    Attributes:
      heads: attention heads.
      dim_head: width of a head.
      dtype: computation type; norms and softmax stay float32.
    """

    heads: int = 8
    dim_head: int = 64
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, tokens: Array | None) -> Array:
        """Map [b, h, w, c] and tokens [b, m, e] to [b, h, w, c]."""
        width = self.heads * self.dim_head
        normed = layer_norm("norm", self.dtype, use_bias=False)(x)
        query, key, value = (
            split_heads(self._local(normed, width, name), self.heads)
            for name in ("query", "key", "value")
        )
        if tokens is not None:
            tokens = layer_norm("context_norm", self.dtype)(tokens)
            token_key = linear(width, self.dtype, "context_key")(tokens)
            token_value = linear(width, self.dtype, "context_value")(tokens)
            key = jnp.concatenate([key, split_heads(token_key, self.heads)], axis=1)
            value = jnp.concatenate([value, split_heads(token_value, self.heads)], axis=1)
        out = nn.silu(linear_attend(query, key, value, self.dim_head**-0.5))
        out = linear(x.shape[-1], self.dtype, "out")(out).reshape(x.shape)
        return layer_norm("out_norm", self.dtype, use_bias=False)(out)

    def _local(self, x: Array, width: int, name: str) -> Array:
        x = linear(width, self.dtype, name)(x)
        depthwise = nn.Conv(
            width,
            (3, 3),
            feature_group_count=width,
            use_bias=False,
            dtype=self.dtype,
            name=f"{name}_local",
        )
        return rearrange(depthwise(x), "b h w c -> b (h w) c")


class FeedForward(nn.Module):
    """Two linear maps around GELU (exact), each after a gain norm; `mult` widens the middle.

    Attributes:
      dtype: computation type; norms and softmax stay float32.
    """

    mult: float = 2.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., c] to [..., c]."""
        channels = x.shape[-1]
        x = layer_norm("norm", self.dtype, use_bias=False)(x)
        x = linear(int(channels * self.mult), self.dtype, "wide")(x)
        x = layer_norm("wide_norm", self.dtype, use_bias=False)(gelu(x))
        return linear(channels, self.dtype, "out")(x)


class MapTransformer(nn.Module):
    """`depth` layers of self attention, of kind "full" or "linear", and feed forward, each with a
    residual.

    Attributes:
      heads: attention heads.
      dim_head: width of a head.
      ff_mult: hidden units of the feed-forward network per channel.
      cosine: logits are 16 times the cosine of query and key.
      dtype: computation type; norms and softmax stay float32.
    """

    kind: str = "full"
    depth: int = 1
    heads: int = 8
    dim_head: int = 64
    ff_mult: float = 2.0
    cosine: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, tokens: Array | None = None) -> Array:
        """Map [b, h, w, c] and tokens [b, m, e] to [b, h, w, c]."""
        sizes = (self.heads, self.dim_head)
        for i in range(self.depth):
            if self.kind == "linear":
                linear = LinearSelfAttention(*sizes, dtype=self.dtype, name=f"attention_{i}")
                x = x + linear(x, tokens)
            else:
                full = SelfAttention(*sizes, self.cosine, self.dtype, name=f"attention_{i}")
                positions = rearrange(x, "b h w c -> b (h w) c")
                x = x + full(positions, tokens).reshape(x.shape)
            x = x + FeedForward(self.ff_mult, self.dtype, name=f"feed_forward_{i}")(x)
        return x

"""The transformer shared by CT-ViT, MaskGIT and its token critic.

A layer, with P the position convolution, A attention and F the feed-forward network:

    x <- x + P(x);   x <- x + A(x);   x <- x + A(x, context);   x <- x + F(x)           (1)

and a gain-only layer norm N at the end. Attention compares directions, not lengths:

    logits = 8 <q/|q| * s_q, k/|k| * s_k> + bias                                        (2)

Queries come from N(x). In self attention keys and values come from x itself, without a norm
(the published weights rely on it); in cross attention from N(context). The feed-forward network
is gated (Shazeer 2020, "GLU Variants Improve Transformer"):

    F(x) = W_out (W_value n(x) * gelu(W_gate n(x)))                                     (3)
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax

from gct_jax.kernels.attention import attention
from gct_jax.kernels.bias import RelativeBias
from gct_jax.models.positions import PositionConvolution

COSINE_SCALE = 8.0

# How each kind of self attention folds the token grid into sequences.
FOLDS = {
    "space": "(b t) (h w)",
    "time": "(b h w) t",
    "all": "b (t h w)",
}


def l2_normalize(x: jax.Array) -> jax.Array:
    """x / max(|x|, 1e-12) along the last axis in float32, with a finite gradient at zero."""
    x = x.astype(jnp.float32)
    return x * lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-24))


def layer_norm(name: str, dtype: jnp.dtype, use_bias: bool = True) -> nn.LayerNorm:
    """Layer norm with a gain and, if wanted, a bias; statistics in float32."""
    return nn.LayerNorm(
        epsilon=1e-5, use_bias=use_bias, use_fast_variance=False, dtype=dtype, name=name
    )


class Attention(nn.Module):
    """Cosine-similarity attention, equation (2).

    Attributes:
      dim: width of the input and the output.
      heads, dim_head: number of heads and their width.
      null_keys: learned key/value pairs in front of the sequence, visible to every query.
      causal: position i sees positions 0..i.
      backend: see `gct_jax.kernels.attention.attention`.
      dtype: computation type.
    """

    dim: int
    heads: int
    dim_head: int
    null_keys: int = 0
    causal: bool = False
    backend: str = "auto"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        context: jax.Array | None = None,
        *,
        bias: RelativeBias | None = None,
        key_mask: jax.Array | None = None,
    ) -> jax.Array:
        """[batch, length, dim] -> the same; cross attention if a context is given.

        context: [batch, keys, any width]; key_mask: [batch, keys] bool, False hides a key.
        """

        def project(name, inputs):
            dense = nn.Dense(
                self.heads * self.dim_head, use_bias=False, dtype=self.dtype, name=name
            )
            return rearrange(dense(inputs), "b n (h d) -> b n h d", h=self.heads)

        def gain_norm(name):
            return layer_norm(name, self.dtype, use_bias=False)

        def directions(inputs, scale):
            return (l2_normalize(inputs) * scale).astype(self.dtype)

        source = x if context is None else gain_norm("context_norm")(context)
        query = project("query", gain_norm("norm")(x))  # [batch, length, heads, d]
        key = project("key", source)  # [batch, keys, heads, d]
        value = project("value", source)
        if self.null_keys:
            shape = (self.null_keys, self.heads, self.dim_head)
            key, value = (
                jnp.concatenate([jnp.broadcast_to(null, (x.shape[0], *shape)), real], axis=1)
                for null, real in (
                    (self.param("null_key", nn.initializers.normal(1.0), shape), key),
                    (self.param("null_value", nn.initializers.normal(1.0), shape), value),
                )
            )
        out = attention(
            directions(query, self.param("query_scale", nn.initializers.ones, (self.dim_head,))),
            directions(key, self.param("key_scale", nn.initializers.ones, (self.dim_head,))),
            value.astype(self.dtype),
            scale=COSINE_SCALE,
            bias=bias,
            null_keys=self.null_keys,
            key_mask=key_mask,
            causal=self.causal,
            backend=self.backend,
        )
        out = rearrange(out, "b n h d -> b n (h d)")
        return nn.Dense(self.dim, use_bias=False, dtype=self.dtype, name="out")(out)


class FeedForward(nn.Module):
    """Gated feed-forward network, equation (3), of inner width floor(8 dim / 3)."""

    dim: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., dim] -> [..., dim]."""
        inner = 8 * self.dim // 3
        shape = x.shape
        x = x.reshape(-1, self.dim)  # XLA's CPU gradients of 2-D products are twice as fast
        x = layer_norm("norm", self.dtype)(x)
        value = nn.Dense(inner, use_bias=False, dtype=self.dtype, name="value")(x)
        gate = nn.Dense(inner, use_bias=False, dtype=self.dtype, name="gate")(x)
        x = value * nn.gelu(gate, approximate=False)
        return nn.Dense(self.dim, use_bias=False, dtype=self.dtype, name="out")(x).reshape(shape)


class TransformerLayer(nn.Module):
    """One layer, equation (1); attributes as in `Transformer`."""

    dim: int
    heads: int
    dim_head: int
    attend: str
    causal: bool
    causal_peg: bool
    peg_layout: str
    backend: str
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, bias, context, context_mask, token_mask):
        """[batch, time, height, width, dim] -> the same shape; arguments as in `Transformer`."""
        sizes = dict(zip("bthw", x.shape[:4], strict=True))
        fold = FOLDS[self.attend]
        x = x + PositionConvolution(
            self.dim, self.causal_peg, self.peg_layout, self.dtype, name="peg"
        )(x)
        tokens = rearrange(x, f"b t h w d -> {fold} d")
        key_mask = None if token_mask is None else rearrange(token_mask, f"b t h w -> {fold}")
        attended = Attention(
            self.dim,
            self.heads,
            self.dim_head,
            causal=self.causal,
            backend=self.backend,
            dtype=self.dtype,
            name="self_attention",
        )(tokens, bias=bias, key_mask=key_mask)
        x = x + rearrange(attended, f"{fold} d -> b t h w d", **sizes)
        if context is not None:
            attended = Attention(
                self.dim,
                self.heads,
                self.dim_head,
                null_keys=2,
                backend=self.backend,
                dtype=self.dtype,
                name="cross_attention",
            )(rearrange(x, "b t h w d -> b (t h w) d"), context, key_mask=context_mask)
            x = x + attended.reshape(x.shape)
        return x + FeedForward(self.dim, self.dtype, name="feed_forward")(x)


class Transformer(nn.Module):
    """A stack of layers (1) on a token grid.

    Attributes:
      dim, depth, heads, dim_head: width, layers, heads and head width.
      context_dim: width of the text embedding, None for a transformer without cross attention.
      attend: self attention within a frame ("space"), along a column of frames ("time") or over
        all tokens ("all").
      causal: with attend="time", a frame sees itself and earlier frames only.
      causal_peg, peg_layout: see `PositionConvolution`.
      backend: see `gct_jax.kernels.attention.attention`.
      dtype: computation type.
    """

    dim: int
    depth: int
    heads: int
    dim_head: int
    context_dim: int | None = None
    attend: str = "all"
    causal: bool = False
    causal_peg: bool = True
    peg_layout: str = "grid"
    backend: str = "auto"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        bias: RelativeBias | None = None,
        context: jax.Array | None = None,
        context_mask: jax.Array | None = None,
        token_mask: jax.Array | None = None,
    ) -> jax.Array:
        """Apply all layers and the final norm.

        Args:
          x: [batch, time, height, width, dim].
          bias: for the self attention; its grid is one frame ("space") or all tokens ("all").
          context: [batch, length, context_dim], or None to skip cross attention.
          context_mask: [batch, length] bool, False hides a position (never the null keys).
          token_mask: [batch, time, height, width] bool, False hides a token as a key.

        Returns:
          [batch, time, height, width, dim].

        Raises:
          ValueError: an option or a context that this transformer cannot use.
        """
        if self.attend not in FOLDS:
            raise ValueError(f"attend {self.attend!r} is not one of {', '.join(FOLDS)}")
        if self.causal and self.attend != "time":
            raise ValueError(f"causal attention is defined along time, not for {self.attend!r}")
        width = None if context is None else context.shape[-1]
        if width is not None and width != self.context_dim:
            raise ValueError(f"context of width {width} for a context_dim of {self.context_dim}")
        for i in range(self.depth):
            x = TransformerLayer(
                self.dim,
                self.heads,
                self.dim_head,
                self.attend,
                self.causal,
                self.causal_peg,
                self.peg_layout,
                self.backend,
                self.dtype,
                name=f"layers_{i}",
            )(x, bias, context, context_mask, token_mask)
        return layer_norm("norm_out", self.dtype, use_bias=False)(x)

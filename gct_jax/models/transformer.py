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

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Float

from gct_jax.array_types import Array, Text, TextMask, TokenMask, Tokens
from gct_jax.errors import ConfigError, InputError
from gct_jax.kernels.attention import attention, shared_bias
from gct_jax.kernels.bias import RelativeBias
from gct_jax.kernels.gelu import gelu
from gct_jax.kernels.linear import linear
from gct_jax.kernels.remat import rematerialized
from gct_jax.models.norms import l2_normalize, layer_norm
from gct_jax.models.positions import PositionConvolution
from gct_jax.sharding import constrain_batch

COSINE_SCALE = 8.0

# How each kind of self attention folds the token grid into sequences.
FOLDS = {
    "space": "(b t) (h w)",
    "time": "(b h w) t",
    "all": "b (t h w)",
}


class KeysValues(NamedTuple):
    """What queries attend to: unit keys times their scale, and values, null ones in front.

    Both [batch, null keys + keys, heads, dim_head], in the type of computation.
    """

    keys: jax.Array
    values: jax.Array


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

    dim: int = 512
    heads: int = 8
    dim_head: int = 64
    null_keys: int = 0
    causal: bool = False
    backend: str = "auto"
    dtype: DTypeLike = jnp.float32

    def setup(self):  # noqa: D102 (Flax hook)
        def projection():
            return linear(self.heads * self.dim_head, self.dtype)

        ones = nn.initializers.ones
        self.norm = layer_norm(None, self.dtype, use_bias=False)
        self.context_norm = layer_norm(None, self.dtype, use_bias=False)
        self.query, self.key, self.value = projection(), projection(), projection()
        self.query_scale = self.param("query_scale", ones, (self.dim_head,))
        self.key_scale = self.param("key_scale", ones, (self.dim_head,))
        if self.null_keys:
            shape, normal = (self.null_keys, self.heads, self.dim_head), nn.initializers.normal(1.0)
            self.null_key = self.param("null_key", normal, shape)
            self.null_value = self.param("null_value", normal, shape)
        self.out = linear(self.dim, self.dtype)

    def __call__(
        self,
        x: Float[Array, "rows queries dim"],
        context: jax.Array | KeysValues | None = None,
        *,
        bias: RelativeBias | None = None,
        key_mask: jax.Array | None = None,
    ) -> Float[Array, "rows queries dim"]:
        """[batch, length, dim] -> the same; cross attention if a context is given.

        context: [batch, keys, any width], or what `context_keys` made of it.
        key_mask: [batch, keys] bool, False hides a key.
        """
        if context is None:
            context = self._keys_values(x)
        elif not isinstance(context, KeysValues):
            context = self.context_keys(context)
        out = attention(
            self._directions(self._heads(self.query(self.norm(x))), self.query_scale),
            context.keys,
            context.values,
            scale=COSINE_SCALE,
            bias=bias,
            null_keys=self.null_keys,
            key_mask=key_mask,
            causal=self.causal,
            backend=self.backend,
        )
        return self.out(rearrange(out, "b n h d -> b n (h d)"))

    def context_keys(self, context: jax.Array) -> KeysValues:
        """Keys and values of a context [batch, keys, any width]."""
        return self._keys_values(self.context_norm(context))

    def _keys_values(self, source: jax.Array) -> KeysValues:
        keys, values = self._heads(self.key(source)), self._heads(self.value(source))
        if self.null_keys:
            shape = (source.shape[0], *self.null_key.shape)
            keys = jnp.concatenate([jnp.broadcast_to(self.null_key, shape), keys], axis=1)
            values = jnp.concatenate([jnp.broadcast_to(self.null_value, shape), values], axis=1)
        return KeysValues(self._directions(keys, self.key_scale), values.astype(self.dtype))

    def _heads(self, x: jax.Array) -> jax.Array:
        return rearrange(x, "b n (h d) -> b n h d", h=self.heads)

    def _directions(self, x: jax.Array, scale: jax.Array) -> jax.Array:
        return (l2_normalize(x) * scale).astype(self.dtype)


class FeedForward(nn.Module):
    """Gated feed-forward network, equation (3), of inner width `ff_dim` or floor(8 dim / 3).

    Weights that were padded with hidden units of zeros (`gct_jax.training.hidden_units`) are taken
    as they are: they compute the same.

    Attributes:
      dtype: computation type; norms and softmax stay float32.
    """

    dim: int = 512
    ff_dim: int | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*tokens dim"]) -> Float[Array, "*tokens dim"]:
        """[..., dim] -> [..., dim]."""
        inner = self.ff_dim or 8 * self.dim // 3
        if self.has_variable("params", "out"):
            inner = self.get_variable("params", "out")["kernel"].shape[0]
        x = layer_norm("norm", self.dtype)(x)
        value = linear(inner, self.dtype, "value")(x)
        gate = linear(inner, self.dtype, "gate")(x)
        x = value * gelu(gate)
        return linear(self.dim, self.dtype, "out")(x)


class TransformerLayer(nn.Module):
    """One layer, equation (1); attributes as in `Transformer`.

    Attributes:
      dim: width of the tokens.
      heads: attention heads.
      dim_head: width of a head.
      attend: see `Transformer`.
      causal: see `Transformer`.
      causal_peg: see `PositionConvolution`.
      peg_layout: see `PositionConvolution`.
      backend: see `gct_jax.kernels.attention.attention`.
      ff_dim: hidden units of the feed-forward layers; None: floor(8 dim / 3).
      mask_peg: see `Transformer`.
      dtype: computation type; norms and softmax stay float32.
    """

    dim: int = 512
    heads: int = 8
    dim_head: int = 64
    attend: str = "all"
    causal: bool = False
    causal_peg: bool = True
    peg_layout: str = "grid"
    backend: str = "auto"
    ff_dim: int | None = None
    mask_peg: bool = True
    dtype: DTypeLike = jnp.float32

    def setup(self):  # noqa: D102 (Flax hook)
        def attention_layer(null_keys, causal):
            sizes = (self.dim, self.heads, self.dim_head)
            return Attention(*sizes, null_keys, causal, self.backend, self.dtype)

        self.peg = PositionConvolution(self.dim, self.causal_peg, self.peg_layout, self.dtype)
        self.self_attention = attention_layer(null_keys=0, causal=self.causal)
        self.cross_attention = attention_layer(null_keys=2, causal=False)
        self.feed_forward = FeedForward(self.dim, self.ff_dim, self.dtype)

    def __call__(self, x, bias, context, context_mask, token_mask):
        """[batch, time, height, width, dim] -> the same shape; arguments as in `Transformer`."""
        sizes = dict(zip("bthw", x.shape[:4], strict=True))
        fold = FOLDS[self.attend]
        # The convolution reads zeros beyond the grid's edge, so it shall beyond the real tokens'.
        hidden = self.mask_peg and token_mask is not None
        x = x + self.peg(jnp.where(token_mask[..., None], x, 0) if hidden else x)
        tokens = rearrange(x, f"b t h w d -> {fold} d")
        key_mask = None if token_mask is None else rearrange(token_mask, f"b t h w -> {fold}")
        attended = self.self_attention(tokens, bias=bias, key_mask=key_mask)
        x = x + rearrange(attended, f"{fold} d -> b t h w d", **sizes)
        if context is not None:
            positions = rearrange(x, "b t h w d -> b (t h w) d")
            attended = self.cross_attention(positions, context, key_mask=context_mask)
            x = x + attended.reshape(x.shape)
        return x + self.feed_forward(x)

    def context_keys(self, context: jax.Array) -> KeysValues:
        """Keys and values of the cross attention."""
        return self.cross_attention.context_keys(context)


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
      ff_dim: hidden units of the feed-forward layers; None for floor(8 dim / 3).
      mask_peg: a token mask hides tokens from the position convolution too; False: from attention
        alone, as in GenerateCT, where padding reaches its neighbours.
      remat: the backward pass computes each layer again instead of keeping it.
      dtype: computation type.
    """

    dim: int = 512
    depth: int = 6
    heads: int = 8
    dim_head: int = 64
    context_dim: int | None = None
    attend: str = "all"
    causal: bool = False
    causal_peg: bool = True
    peg_layout: str = "grid"
    backend: str = "auto"
    ff_dim: int | None = None
    mask_peg: bool = True
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    def setup(self):  # noqa: D102 (Flax hook)
        if self.attend not in FOLDS:
            raise ConfigError(f"attend {self.attend!r} is not one of {', '.join(FOLDS)}")
        if self.causal and self.attend != "time":
            raise ConfigError(f"causal attention is defined along time, not for {self.attend!r}")
        self.layers = [
            TransformerLayer(
                self.dim,
                self.heads,
                self.dim_head,
                self.attend,
                self.causal,
                self.causal_peg,
                self.peg_layout,
                self.backend,
                self.ff_dim,
                self.mask_peg,
                self.dtype,
            )
            for _ in range(self.depth)
        ]
        self.norm_out = layer_norm(None, self.dtype, use_bias=False)

    def __call__(
        self,
        x: Tokens,
        bias: RelativeBias | None = None,
        context: Text | Sequence[KeysValues] | None = None,
        context_mask: TextMask | None = None,
        token_mask: TokenMask | None = None,
    ) -> Tokens:
        """Apply all layers and the final norm.

        Args:
          x: [batch, time, height, width, dim].
          bias: for the self attention; its grid is one frame ("space") or all tokens ("all").
          context: [batch, length, context_dim], or what `context_keys` made of it, or None to skip
            cross attention.
          context_mask: [batch, length] bool, False hides a position (never the null keys).
          token_mask: [batch, time, height, width] bool, False hides a token: padding then changes
            nothing of the others.

        Returns:
          [batch, time, height, width, dim].

        Raises:
          ConfigError: an unknown option. InputError: a context of another width.
        """
        contexts: Sequence[jax.Array | KeysValues | None]
        if context is None or isinstance(context, jax.Array | np.ndarray):
            self._check_width(context)
            contexts = [context] * self.depth
        else:
            contexts = context
        if bias is not None:
            bias = shared_bias(bias, self.backend)
        x = constrain_batch(x)
        for layer, layer_context in zip(self.layers, contexts, strict=True):
            arguments = x, bias, layer_context, context_mask, token_mask
            again = self.remat and not self.is_initializing()
            x = constrain_batch(rematerialized(layer, *arguments) if again else layer(*arguments))
        return self.norm_out(x)

    def context_keys(self, context: jax.Array) -> tuple[KeysValues, ...]:
        """Each layer's keys and values of a context [batch, length, context_dim], for calls that
        share it.

        Raises:
          InputError: a context of another width.
        """
        self._check_width(context)
        return tuple(layer.context_keys(context) for layer in self.layers)

    def _check_width(self, context: jax.Array | None) -> None:
        if context is not None and context.shape[-1] != self.context_dim:
            raise InputError(
                f"context of width {context.shape[-1]} for a context_dim of {self.context_dim}"
            )

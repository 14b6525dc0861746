"""What the U-Net is told besides the image: noise level, low-res noise level and text.

The outcome is one vector, added to the time embedding that modulates every ResNet block, and a
short sequence of tokens for cross attention (Saharia et al. 2022, "Imagen", appendix D).
"""

import math

import jax.numpy as jnp
from einops import rearrange, repeat
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Bool

from gct_jax.array_types import Array, Text, TextMask
from gct_jax.kernels.linear import linear
from gct_jax.models.norms import layer_norm
from gct_jax.models.unet_attention import (
    FeedForward,
    attend,
    split_heads,
)
from gct_jax.sharding import constrain_batch


class NoiseLevelEmbedding(nn.Module):
    """Vector and tokens of a log SNR, from sinusoids of learned frequencies.

    Attributes:
      width: output width.
      num_tokens: tokens that tell the noise level.
      token_dim: width of the conditioning tokens.
      sinusoid_dim: learned frequencies of the noise level.
      dtype: computation type; norms and softmax stay float32.
    """

    width: int = 256
    num_tokens: int = 2
    token_dim: int = 64
    sinusoid_dim: int = 16
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, log_snr: Array) -> tuple[Array, Array]:
        """[b] to vector [b, width] and tokens [b, num_tokens, token_dim]."""
        frequencies = self.param(
            "frequencies", nn.initializers.normal(1.0), (self.sinusoid_dim // 2,)
        )
        level = log_snr.astype(jnp.float32)[:, None]
        angle = 2 * math.pi * level * frequencies  # float32: angles reach hundreds of radians
        features = jnp.concatenate([level, jnp.sin(angle), jnp.cos(angle)], axis=-1)
        hidden = nn.Dense(self.width, dtype=self.dtype, name="hidden")(features)
        hidden = nn.silu(constrain_batch(hidden))
        vector = nn.Dense(self.width, dtype=self.dtype, name="vector")(hidden)
        tokens = nn.Dense(self.num_tokens * self.token_dim, dtype=self.dtype, name="tokens")(hidden)
        return vector, rearrange(tokens, "b (n d) -> b n d", n=self.num_tokens)


class LatentAttention(nn.Module):
    """Latents attend to the inputs and to themselves (Alayrac et al. 2022).

    Attributes:
      heads: attention heads.
      dim_head: width of a head.
      cosine: logits are 16 times the cosine of query and key.
      dtype: computation type; norms and softmax stay float32.
    """

    heads: int = 8
    dim_head: int = 64
    cosine: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: Array, latents: Array) -> Array:
        """Inputs [b, n, d] and latents [b, m, d] to [b, m, d]."""
        width = self.heads * self.dim_head
        normed = layer_norm("latents_norm", self.dtype)(latents)
        source = jnp.concatenate([layer_norm("norm", self.dtype)(inputs), normed], axis=1)
        query = split_heads(linear(width, self.dtype, "query")(normed), self.heads)
        key = split_heads(linear(width, self.dtype, "key")(source), self.heads)
        value = split_heads(linear(width, self.dtype, "value")(source), self.heads)
        out = attend(query, key, value, self.cosine)
        out = linear(latents.shape[-1], self.dtype, "out")(out)
        return layer_norm("out_norm", self.dtype)(out)


class AttentionPool(nn.Module):
    """Pools text into 4 + num_latents tokens with two layers of latent attention. The first four
    latents come from the mean of the text, the others are learned.

    Attributes:
      heads: attention heads.
      dim_head: width of a head.
      cosine: logits are 16 times the cosine of query and key.
      max_positions: positions that have an embedding.
      dtype: computation type; norms and softmax stay float32.
    """

    num_latents: int = 32
    heads: int = 8
    dim_head: int = 64
    cosine: bool = False
    max_positions: int = 512
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, text: Array) -> Array:
        """[b, n, d] to [b, 4 + num_latents, d]."""
        batch, length, dim = text.shape
        normal = nn.initializers.normal(1.0)
        positions = self.param("positions", normal, (self.max_positions, dim))
        learned = self.param("latents", normal, (self.num_latents, dim))
        mean = layer_norm("mean_norm", self.dtype, use_bias=False)(text.mean(axis=1))
        pooled = nn.Dense(4 * dim, dtype=self.dtype, name="mean_latents")(mean)
        latents = jnp.concatenate(
            [
                rearrange(pooled, "b (n d) -> b n d", n=4),
                repeat(learned.astype(self.dtype), "n d -> b n d", b=batch),
            ],
            axis=1,
        )
        located = text + positions[:length].astype(self.dtype)
        for i in range(2):
            attention = LatentAttention(
                self.heads, self.dim_head, self.cosine, self.dtype, name=f"attention_{i}"
            )
            latents = latents + attention(located, latents)
            latents = latents + FeedForward(4.0, self.dtype, name=f"feed_forward_{i}")(latents)
        return latents


class TextConditioning(nn.Module):
    """Vector and tokens of text embeddings.

    Text is cut or zero-padded to `max_length`. With a mask, padded positions become a learned null
    row; without one they stay zero, which is another function of the same text, so pass a mask.
    Where `keep` is False the whole text is replaced by null rows and a null vector.

    Attributes:
      width: output width.
      token_dim: width of the conditioning tokens.
      pool: pool the text by attention.
      num_latents: latents of that attention.
      heads: attention heads.
      dim_head: width of a head.
      cosine: logits are 16 times the cosine of query and key.
      dtype: computation type; norms and softmax stay float32.
    """

    width: int = 256
    token_dim: int = 64
    max_length: int = 256
    pool: bool = True
    num_latents: int = 32
    heads: int = 8
    dim_head: int = 64
    cosine: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, text: Text, mask: TextMask | None, keep: Bool[Array, "batch"] | None
    ) -> tuple[Array, Array]:
        """Text [b, l, e], mask [b, l], keep [b] to vector [b, width], tokens [b, m, token_dim]."""
        normal = nn.initializers.normal(1.0)
        null_tokens = self.param("null_tokens", normal, (self.max_length, self.token_dim))
        null_vector = self.param("null_vector", normal, (self.width,))
        text = text[:, : self.max_length]
        missing = self.max_length - text.shape[1]
        tokens = nn.Dense(self.token_dim, dtype=self.dtype, name="text")(text)
        tokens = jnp.pad(tokens, ((0, 0), (0, missing), (0, 0)))  # [b, max_length, token_dim]
        if keep is None:
            keep = jnp.ones(text.shape[0], bool)
        visible = keep[:, None]  # [b, 1] or [b, max_length]
        if mask is not None:
            mask = jnp.pad(mask[:, : self.max_length], ((0, 0), (0, missing)))
            visible = visible & mask
        tokens = jnp.where(visible[..., None], tokens, null_tokens.astype(self.dtype))
        if self.pool:
            tokens = AttentionPool(
                self.num_latents,
                self.heads,
                self.dim_head,
                self.cosine,
                dtype=self.dtype,
                name="pool",
            )(tokens)
        vector = layer_norm("vector_norm", self.dtype)(tokens.mean(axis=1))
        vector = nn.Dense(self.width, dtype=self.dtype, name="vector_hidden")(vector)
        vector = nn.silu(constrain_batch(vector))
        vector = nn.Dense(self.width, dtype=self.dtype, name="vector")(vector)
        return jnp.where(keep[:, None], vector, null_vector.astype(self.dtype)), tokens


class Conditioning(nn.Module):
    """Everything the U-Net is told besides the image; `width` is that of the vector.

    Attributes:
      token_dim: width of the conditioning tokens.
      num_time_tokens: tokens that tell the noise level.
      sinusoid_dim: learned frequencies of the noise level.
      max_text_len: tokens of text; longer text is cut.
      attn_pool_text: pool the text by attention.
      attn_pool_num_latents: latents of that attention.
      heads: attention heads.
      dim_head: width of a head.
      cosine: logits are 16 times the cosine of query and key.
      dtype: computation type; norms and softmax stay float32.
    """

    width: int = 256
    token_dim: int = 64
    num_time_tokens: int = 2
    sinusoid_dim: int = 16
    max_text_len: int = 256
    attn_pool_text: bool = True
    attn_pool_num_latents: int = 32
    heads: int = 8
    dim_head: int = 64
    cosine: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        log_snr: Array,
        low_res_log_snr: Array | None,
        text: Array | None,
        text_mask: Array | None,
        keep_text: Array | None,
    ) -> tuple[Array, Array]:
        """Log SNRs [b], text [b, l, e], mask [b, l], keep_text [b], all but the first optional.

        Returns the vector [b, width] and the normalised tokens [b, m, token_dim].
        """
        sizes = (self.width, self.num_time_tokens, self.token_dim, self.sinusoid_dim, self.dtype)
        vector, tokens = NoiseLevelEmbedding(*sizes, name="noise_level")(log_snr)
        if low_res_log_snr is not None:
            low = NoiseLevelEmbedding(*sizes, name="low_res_noise_level")(low_res_log_snr)
            vector = vector + low[0]
            tokens = jnp.concatenate([tokens, low[1]], axis=1)
        if text is not None:
            text_vector, text_tokens = TextConditioning(
                self.width,
                self.token_dim,
                self.max_text_len,
                self.attn_pool_text,
                self.attn_pool_num_latents,
                self.heads,
                self.dim_head,
                self.cosine,
                dtype=self.dtype,
                name="text",
            )(text, text_mask, keep_text)
            vector = vector + text_vector
            tokens = jnp.concatenate([tokens, text_tokens], axis=1)
        tokens = layer_norm("norm", self.dtype)(tokens)
        return constrain_batch(vector), constrain_batch(tokens)

"""Discriminator that judges single CT slices (GenerateCT, section 3.1).

A block halves the map: with D the space-to-depth fold followed by a 1x1 convolution,

    x <- (C_1x1,stride2(x) + D(lrelu(C_3x3(lrelu(C_3x3(x)))))) / sqrt(2)                (1)

The last block keeps the size. For an image of 2^n pixels there are n - 1 blocks, ending in 4x4.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike

from gct_jax.array_types import Images
from gct_jax.errors import InputError
from gct_jax.models.transformer import Attention
from gct_jax.sharding import constrain_batch


class DiscriminatorBlock(nn.Module):
    """Residual block of equation (1).

    Attributes:
      width: output width.
      halve: halve the map; the last block does not.
      dtype: computation type; norms and softmax stay float32.
    """

    width: int = 64
    halve: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, H, W, any channels] -> [batch, H/2, W/2, width] (or H, W if not `halve`)."""

        def conv(name, size, inputs, stride=1):
            pad = [(size // 2, size // 2)] * 2
            layer = nn.Conv(
                self.width, (size, size), stride, padding=pad, dtype=self.dtype, name=name
            )
            return constrain_batch(layer(inputs))

        residual = conv("residual", 1, x, stride=2 if self.halve else 1)
        x = nn.leaky_relu(conv("conv_0", 3, x), 0.1)
        x = nn.leaky_relu(conv("conv_1", 3, x), 0.1)
        if self.halve:
            x = rearrange(x, "b (h p) (w q) c -> b h w (c p q)", p=2, q=2)
            x = conv("downsample", 1, x)
        return (x + residual) / math.sqrt(2)


class Discriminator(nn.Module):
    """One logit per slice, high for a real one.

    Attributes:
      base_dim: block i has min(512, 4 * base_dim * 2^i) channels.
      attention_sizes: attention follows each block whose *input* map has as many pixels a side,
        as the published weights have it; a smaller image has none.
      dtype: computation type.
    """

    base_dim: int = 16
    attention_sizes: tuple[int, ...] = (16,)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Images) -> jax.Array:
        """[batch, size, size, channels] in [-1, 1] -> [batch] float32 logits.

        Raises:
          InputError: an image that is not square with a power of two >= 8 as its side.
        """
        size, width = images.shape[1:3]
        if size != width or size < 8 or size & (size - 1):
            raise InputError(
                f"slices of {size} x {width}: the discriminator needs squares of 8, 16, 32, ..."
            )
        x = images.astype(self.dtype)
        blocks = size.bit_length() - 2
        for i in range(blocks):
            input_size = x.shape[1]
            channels = min(512, 4 * self.base_dim * 2**i)
            x = DiscriminatorBlock(channels, i < blocks - 1, self.dtype, name=f"block_{i}")(x)
            if input_size in self.attention_sizes:
                tokens = rearrange(x, "b h w c -> b (h w) c")
                attended = Attention(channels, 8, 64, dtype=self.dtype, name=f"attention_{i}")(
                    tokens
                )
                x = x + attended.reshape(x.shape)
        x = nn.Conv(x.shape[-1], (3, 3), padding=1, dtype=self.dtype, name="conv_out")(x)
        x = rearrange(nn.leaky_relu(x, 0.1), "b h w c -> b (c h w)")
        return nn.Dense(1, name="logit")(x.astype(jnp.float32))[:, 0]

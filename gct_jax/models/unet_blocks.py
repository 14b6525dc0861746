"""Convolutional blocks of the super-resolution U-Net (Saharia et al. 2022, appendix F).

    Block:   x -> conv3x3( silu( norm(x) (1 + scale) + shift ) )                             (1)
    ResNet:  h = Block(x); h = h + cross(h, tokens); h = Block(h; time);                     (2)
             x + gate(h) h,  with a 1x1 convolution on the residual when widths differ
    Gate:    sigmoid( W_2 silu( W_1 sum_p softmax_p(w . h_p) h_p ) )   (Cao et al. 2019)     (3)

Images are [batch, height, width, channel]; parameters are float32, normalisation and softmax run
in float32, everything else in `dtype`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Float

from gct_jax.array_types import Array, Images
from gct_jax.kernels.convolution import convolution
from gct_jax.kernels.linear import as_positions, weighted_sum
from gct_jax.kernels.normed_convolution import fuses, normed_convolution
from gct_jax.sharding import constrain_batch


def conv(features: int, kernel: int, **options: Any) -> nn.Conv:
    """Square convolution that keeps the image size, or halves it with `strides=(2, 2)`."""
    return nn.Conv(features, (kernel, kernel), conv_general_dilated=convolution, **options)


class ConvWeights(nn.Module):
    """Kernel and bias of `conv` with a 3x3 window, to be applied by the caller.

    Attributes:
      features: output channels.
    """

    features: int = 64

    @nn.compact
    def __call__(self, channels: int) -> tuple[Array, Array]:
        """[3, 3, channels, features] and [features], float32."""
        shape = (3, 3, channels, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,))


class GroupNorm(nn.Module):
    """Group normalisation over space and the channels of a group, and a modulation if given, as one
    affine map per channel.

    The statistics come from per-channel sums in a single pass, which XLA turns into one cheap
    reduction; grouping the channels first is ten times slower on a CPU.

    Attributes:
      groups: groups of the group norm.
      epsilon: added to the variance.
      dtype: computation type; norms and softmax stay float32.
    """

    groups: int = 8
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    def __call__(self, x: Array, scale_shift: Array | None = None) -> Array:
        """x [b, h, w, c], modulation of the result [b, 2 c] or None; returns [b, h, w, c]."""
        gain, offset = self.affine(x, scale_shift)
        x = x.astype(jnp.float32)
        return (x * gain[:, None, None] + offset[:, None, None]).astype(self.dtype)

    @nn.compact
    def affine(self, x: Array, scale_shift: Array | None = None) -> tuple[Array, Array]:
        """Gain and offset of the map, float32 [b, c]; arguments as in `__call__`."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        x = x.astype(jnp.float32)
        moments = jnp.stack([x.mean((1, 2)), jnp.square(x).mean((1, 2))])  # [2, batch, channel]
        grouped = rearrange(moments, "m b (g c) -> m b g c", g=self.groups).mean(-1)
        mean, square = jnp.repeat(grouped, channels // self.groups, axis=-1)
        variance = jnp.maximum(square - mean**2, 0) + self.epsilon
        if scale_shift is not None:
            factor, shift = jnp.split(scale_shift.astype(jnp.float32), 2, axis=-1)
            scale, bias = scale * (factor + 1), bias * (factor + 1) + shift
        scale = scale * jnp.sqrt(variance)
        # Quotients, because XLA computes them once, but sums and products again for every pixel.
        return scale / variance, (bias * variance - mean * scale) / variance


class Block(nn.Module):
    """Equation (1).

    Attributes:
      features: output channels.
      groups: groups of the group norm.
      dtype: computation type; norms and softmax stay float32.
      backend: "dense" keeps norm and convolution apart on TPUs too, which has both modes.
    """

    features: int = 64
    groups: int = 8
    dtype: DTypeLike = jnp.float32
    backend: str = "auto"

    @nn.compact
    def __call__(
        self, x: Images, scale_shift: Array | None = None
    ) -> Float[Array, "batch height width features"]:
        """x [b, h, w, c], modulation [b, 2 c] or None; returns [b, h, w, features]."""
        norm = GroupNorm(self.groups, dtype=self.dtype, name="norm")
        if self.backend != "dense" and fuses(x.shape, self.features):
            gain, offset = norm.affine(x, scale_shift)
            weights = ConvWeights(self.features, name="conv")(x.shape[-1])
            x = normed_convolution(x.astype(self.dtype), gain, offset, *weights)
        else:
            x = nn.silu(norm(x, scale_shift))
            x = conv(self.features, 3, dtype=self.dtype, name="conv")(x)
        return constrain_batch(x)


class GlobalContext(nn.Module):
    """Channel gate of equation (3).

    Attributes:
      dtype: computation type; norms and softmax stay float32.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[b, h, w, c] to the gate [b, 1, 1, c]."""
        channels = x.shape[-1]
        positions = as_positions(x)
        logits = nn.Dense(1, dtype=self.dtype, name="position")(positions).astype(jnp.float32)
        axes = tuple(range(1, logits.ndim - 1))
        pooled = weighted_sum(jax.nn.softmax(logits, axis=axes).astype(self.dtype), positions)
        hidden = nn.Dense(max(3, channels // 2), dtype=self.dtype, name="hidden")(pooled)
        hidden = nn.silu(constrain_batch(hidden))
        gate = nn.sigmoid(nn.Dense(channels, dtype=self.dtype, name="gate")(hidden))
        return gate[:, None, None]


class ResnetBlock(nn.Module):
    """Equation (2).

    Attributes:
      features: output channels.
      groups: groups of both normalisations.
      gate: whether to apply the global context gate.
      cross_attention: builds the module that attends to the conditioning tokens, or None.
      dtype: computation type; norms and softmax stay float32.
      backend: see `Block`.
    """

    features: int = 64
    groups: int = 8
    gate: bool = False
    cross_attention: Callable[..., nn.Module] | None = None
    dtype: DTypeLike = jnp.float32
    backend: str = "auto"

    @nn.compact
    def __call__(
        self,
        x: Images,
        time: Float[Array, "batch time_dim"],
        tokens: Float[Array, "batch tokens token_dim"] | None = None,
    ) -> Float[Array, "batch height width features"]:
        """x [b, h, w, c], time [b, time width], tokens [b, l, token width] for cross attention."""
        hidden = Block(self.features, self.groups, self.dtype, self.backend, name="block1")(x)
        if self.cross_attention is not None:
            attend = self.cross_attention(dtype=self.dtype, name="cross_attention")
            hidden = hidden + attend(hidden, tokens)
        modulation = nn.Dense(2 * self.features, dtype=self.dtype, name="time")(nn.silu(time))
        hidden = Block(self.features, self.groups, self.dtype, self.backend, name="block2")(
            hidden, modulation
        )
        if self.gate:
            hidden = hidden * GlobalContext(dtype=self.dtype, name="context_gate")(hidden)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype, name="residual")(x)
        return constrain_batch(x + hidden)


class CrossEmbed(nn.Module):
    """Parallel convolutions of several kernel sizes, concatenated over channels.

    The first size gives half of the features, the next a quarter, and so on; the last takes the
    rest. All run as one convolution with zero-padded kernels, about twice as fast as several.

    Attributes:
      kernel_sizes: sides of the windows.
      stride: step of the windows.
      dtype: computation type; norms and softmax stay float32.
    """

    features: int = 64
    kernel_sizes: tuple[int, ...] = (3, 7, 15)
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[b, h, w, c] to [b, h / stride, w / stride, features]."""
        largest = max(self.kernel_sizes)
        kernels = []
        for size, width in zip(sorted(self.kernel_sizes), self._widths(), strict=True):
            shape = (size, size, x.shape[-1], width)
            kernel = self.param(f"kernel_{size}", nn.initializers.lecun_normal(), shape)
            margin = (largest - size) // 2
            kernels.append(jnp.pad(kernel, ((margin, margin), (margin, margin), (0, 0), (0, 0))))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        kernel = jnp.concatenate(kernels, axis=-1).astype(self.dtype)
        padding = (largest - self.stride) // 2
        x = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel,
            window_strides=(self.stride, self.stride),
            padding=((padding, padding), (padding, padding)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return x + bias.astype(self.dtype)

    def _widths(self) -> list[int]:
        widths = [self.features // 2 ** (i + 1) for i in range(len(self.kernel_sizes) - 1)]
        return [*widths, self.features - sum(widths)]


def subpixel_initializer(
    key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
) -> Array:
    """Same initial kernel for the four pixels that one pixel becomes (Aitken et al. 2017), so that
    training starts without a checkerboard."""
    *inputs, outputs = shape
    kernel = nn.initializers.lecun_normal()(key, (*inputs, outputs // 4), dtype)
    return jnp.tile(kernel, 4)


class PixelShuffle(nn.Module):
    """Doubles height and width: 1x1 convolution to four sub-pixels, SiLU, rearrangement.

    Attributes:
      features: output channels.
      dtype: computation type; norms and softmax stay float32.
    """

    features: int = 64
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[b, h, w, c] to [b, 2 h, 2 w, features]."""
        x = nn.Dense(
            4 * self.features, kernel_init=subpixel_initializer, dtype=self.dtype, name="conv"
        )(x)
        return rearrange(nn.silu(x), "b h w (r s c) -> b (h r) (w s) c", r=2, s=2)


class NearestUpsample(nn.Module):
    """Doubles height and width by repetition, then a 3x3 convolution.

    Attributes:
      features: output channels.
      dtype: computation type; norms and softmax stay float32.
    """

    features: int = 64
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[b, h, w, c] to [b, 2 h, 2 w, features]."""
        x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        return conv(self.features, 3, dtype=self.dtype, name="conv")(x)


class Widen(nn.Module):
    """Change of width without change of size: a 3x3 and a 1x1 convolution, summed.

    Attributes:
      features: output channels.
      dtype: computation type; norms and softmax stay float32.
    """

    features: int = 64
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[b, h, w, c] to [b, h, w, features]."""
        wide = conv(self.features, 3, dtype=self.dtype, name="conv3")(x)
        return wide + nn.Dense(self.features, dtype=self.dtype, name="conv1")(x)


class FinalConv(nn.Module):
    """3x3 convolution of [features, low_res] to `features_out` channels, zero at initialisation.

    One kernel for the concatenated input, applied to its two parts in turn: odd channel counts
    are several times slower than the two convolutions.

    Attributes:
      dtype: computation type; norms and softmax stay float32.
    """

    features_out: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, low_res: Array | None) -> Array:
        """x [b, h, w, c], low_res [b, h, w, d] or None; returns [b, h, w, features_out]."""
        parts = [x] if low_res is None else [x, low_res]
        shape = (3, 3, sum(part.shape[-1] for part in parts), self.features_out)
        kernel = self.param("kernel", nn.initializers.zeros, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features_out,))
        split = jnp.split(kernel, [x.shape[-1]], axis=2)
        outputs = [
            jax.lax.conv_general_dilated(
                part.astype(self.dtype),
                weights.astype(self.dtype),
                window_strides=(1, 1),
                padding="SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            for part, weights in zip(parts, split, strict=False)
        ]
        return sum(outputs[1:], outputs[0]) + bias.astype(self.dtype)

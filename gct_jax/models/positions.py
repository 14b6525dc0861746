"""Position information: a depthwise convolution on the token grid, and a learned relative bias.

Position generating convolution (Chu et al. 2021, "Conditional Positional Encodings"):

    y[t, r, c] = b + sum_{i,j,k} w[i, j, k] * x[t + i - p, r + j - 1, c + k - 1]        (1)

with p = 2 (causal in time) or 1, zeros outside the grid. Continuous position bias (Liu et al.
2022, "Swin Transformer V2"), evaluated once per distinct offset (a, b, c) of query minus key:

    bias(a, b, c) = MLP(s(a), s(b), s(c)),   s(x) = sign(x) ln(1 + |x|)                 (2)
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike

from gct_jax.errors import ConfigError
from gct_jax.kernels.bias import RelativeBias
from gct_jax.kernels.convolution import depthwise


class PositionConvolution(nn.Module):
    """Depthwise 3x3x3 convolution of equation (1).

    Attributes:
      dim: number of channels.
      causal: see only the present and the two previous frames.
      layout: "grid" convolves along (time, height, width). "interleaved" is what the published
        temporal transformers were trained with: the tokens in memory order (height, width, time)
        are taken for a (time, height, width) grid.
      dtype: computation type.
    """

    dim: int = 512
    causal: bool = True
    layout: str = "grid"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, time, height, width, dim] -> the same shape."""
        if self.layout not in ("grid", "interleaved"):
            raise ConfigError(f"layout {self.layout!r} is not one of 'grid', 'interleaved'")
        # The standard deviation of PyTorch's default for a kernel of 27 inputs.
        kernel = self.param("kernel", nn.initializers.normal(1 / 9), (3, 3, 3, self.dim))
        bias = self.param("bias", nn.initializers.zeros, (self.dim,))
        _, frames, height, width, _ = x.shape
        x = x.astype(self.dtype)
        kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)
        if self.layout == "interleaved":
            x = rearrange(x, "b t h w d -> b h w t d").reshape(x.shape)
        y = depthwise(x, kernel, bias, past=2 if self.causal else 1)
        if self.layout == "interleaved":
            y = y.reshape(-1, height, width, frames, self.dim)
            y = rearrange(y, "b h w t d -> b t h w d")
        return y


class ContinuousPositionBias(nn.Module):
    """Relative position bias of equation (2).

    Attributes:
      width: hidden width of the MLP.
      heads: number of attention heads.
      grid_dims: 2 for offsets (height, width) within a frame, 3 for (time, height, width).
    """

    width: int = 512
    heads: int = 8
    grid_dims: int = 2

    @nn.compact
    def __call__(self, grid: tuple[int, ...]) -> RelativeBias:
        """Bias of the grid (T, H, W); with two grid dimensions, of one frame of it."""
        frames, height, width = grid
        if self.grid_dims not in (2, 3):
            raise ConfigError(f"grid_dims = {self.grid_dims} is neither 2 nor 3")
        if self.grid_dims == 2:
            frames = 1
        axes = [jnp.arange(1 - n, n, dtype=jnp.float32) for n in (frames, height, width)]
        offsets = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), -1)  # [2T-1, 2H-1, 2W-1, 3]
        x = (jnp.sign(offsets) * jnp.log1p(jnp.abs(offsets)))[..., 3 - self.grid_dims :]
        x = nn.leaky_relu(nn.Dense(self.width, name="hidden_0")(x), 0.1)
        x = nn.leaky_relu(nn.Dense(self.width, name="hidden_1")(x), 0.1)
        x = nn.Dense(self.heads, name="out")(x)
        return RelativeBias(rearrange(x, "t h w heads -> heads t h w"), (frames, height, width))

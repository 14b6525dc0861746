"""Features of VGG-16 (Simonyan & Zisserman 2015, configuration D) for the perceptual loss.

The network is frozen and has no dropout. It sees CT slices in [-1, 1], the channel repeated to
three, without ImageNet's normalisation, as in the PyTorch original.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Float

from gct_jax.array_types import Array, Images
from gct_jax.errors import ModelFolderError
from gct_jax.sharding import REPLICA_FEATURES, REPLICA_ROWS, constrain_batch

# Convolutions of each stage; a 2x2 max pool ends every stage.
STAGES = (2, 2, 3, 3, 3)
POOLED_SIZE = 7


def adaptive_average_pool(images: Images, size: int) -> Float[Array, "batch size size channels"]:
    """[batch, H, W, channels] -> [batch, size, size, channels].

    Output cell i averages rows floor(i H / size) to ceil((i + 1) H / size), columns likewise.
    The cells overlap or repeat rows where `size` does not divide H.
    """

    def weights(extent):
        cells = np.arange(size)
        start, stop = cells * extent // size, -(-(cells + 1) * extent // size)
        position = np.arange(extent)
        inside = (position >= start[:, None]) & (position < stop[:, None])
        return jnp.asarray(inside / (stop - start)[:, None], images.dtype)  # [size, extent]

    rows, columns = weights(images.shape[1]), weights(images.shape[2])
    return jnp.einsum("bhwc,ih,jw->bijc", images, rows, columns)


class VGG16Features(nn.Module):
    """VGG-16 up to the second ReLU of its classifier.

    Attributes:
      widths: channels of the five stages.
      classifier_width: width of the two fully connected layers.
      dtype: computation type; the features are float32.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    classifier_width: int = 4096
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width gray_or_rgb"]
    ) -> Float[Array, "batch features"]:
        """[batch, H, W, 1 or 3] in [-1, 1], at least 32 pixels a side -> [batch, width]."""
        x = images
        if x.shape[-1] == 1:
            x = jnp.repeat(x, 3, axis=-1)
        for stage, (width, layers) in enumerate(zip(self.widths, STAGES, strict=True)):
            for layer in range(layers):
                conv = nn.Conv(
                    width, (3, 3), padding=1, dtype=self.dtype, name=f"conv_{stage}_{layer}"
                )
                x = nn.relu(constrain_batch(conv(x)))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = rearrange(adaptive_average_pool(x, POOLED_SIZE), "b h w c -> b (h w c)")
        dense = functools.partial(nn.Dense, self.classifier_width, dtype=self.dtype)
        # A row has 25,088 numbers, the kernel 103 million: the rows go to the parts of the kernel.
        x = dense(name="dense_0")(constrain_batch(constrain_batch(x), REPLICA_ROWS))
        x = dense(name="dense_1")(nn.relu(constrain_batch(x, REPLICA_FEATURES)))
        return nn.relu(constrain_batch(x)).astype(jnp.float32)


def vgg16_from_torchvision(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Parameters of `VGG16Features` from torchvision's `vgg16` state dict as NumPy arrays.

    Only features.* and classifier.0 and .3 are read.

    Raises:
      ModelFolderError: a tensor is missing.
    """

    def tensor(name):
        if name not in state:
            raise ModelFolderError(f"the VGG-16 weights lack the tensor {name!r}")
        return np.asarray(state[name], np.float32)

    params = {}
    index = 0
    for stage, layers in enumerate(STAGES):
        for layer in range(layers):
            params[f"conv_{stage}_{layer}"] = {
                "kernel": rearrange(tensor(f"features.{index}.weight"), "o i h w -> h w i o"),
                "bias": tensor(f"features.{index}.bias"),
            }
            index += 2  # a ReLU sits between the convolutions
        index += 1  # and a pool behind each stage
    # torchvision flattens (channel, row, column), this module (row, column, channel).
    first = tensor("classifier.0.weight")
    grid = {"h": POOLED_SIZE, "w": POOLED_SIZE}
    params["dense_0"] = {
        "kernel": rearrange(first, "o (c h w) -> (h w c) o", **grid),
        "bias": tensor("classifier.0.bias"),
    }
    params["dense_1"] = {
        "kernel": tensor("classifier.3.weight").T,
        "bias": tensor("classifier.3.bias"),
    }
    return params

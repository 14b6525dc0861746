"""A codec for tests, one file and one row: a token is the mean of its patch in so many levels."""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import reduce, repeat

from gct_jax.config import Codec, CodecConfig
from gct_jax.models.token_grid import PatchSize, patch_sides, slice_count
from gct_jax.ranges import choice


@dataclasses.dataclass(frozen=True)
class BlockCodecConfig(CodecConfig):
    kind: str = choice("blocks", ("blocks",), module=False)


class Output(NamedTuple):
    reconstruction: jax.Array


class BlockCodec(nn.Module):
    channels: int = 1
    codebook_size: int = 32
    patch_size: PatchSize = 16
    temporal_patch_size: int = 2
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.levels = self.param(
            "levels", lambda key, size: jnp.linspace(-1.0, 1.0, size), self.codebook_size
        )

    def encode(self, volume):
        first = jnp.repeat(volume[:, :1], self.temporal_patch_size, axis=1)
        whole = jnp.concatenate([first, volume[:, 1:]], axis=1)
        rows, columns = patch_sides(self.patch_size)
        size = {"p": self.temporal_patch_size, "r": rows, "q": columns}
        means = reduce(whole, "b (t p) (h r) (w q) c -> b t h w", "mean", **size)
        return jnp.argmin(jnp.abs(means[..., None] - self.levels), -1).astype(jnp.int32)

    def decode(self, ids):
        rows, columns = patch_sides(self.patch_size)
        size = {"p": self.temporal_patch_size, "r": rows, "q": columns, "c": self.channels}
        whole = repeat(self.levels[ids], "b t h w -> b (t p) (h r) (w q) c", **size)
        return whole[:, -slice_count(ids.shape[1], self.temporal_patch_size) :]

    def __call__(self, volume):
        return Output(self.decode(self.encode(volume)))


ROW = Codec(BlockCodecConfig, "block_codec:BlockCodec")

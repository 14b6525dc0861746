"""CT-ViT: a CT volume as a short grid of discrete tokens (Hamamci et al. 2023, section 3.1).

Slice 0 is a token frame of its own; every following `temporal_patch_size` slices make one more,
so that d = 1 + (t - 1) * temporal_patch_size slices give t token frames:

    volume -> patches -> spatial transformer -> temporal transformer -> ids
    ids -> code rows -> temporal transformer -> spatial transformer -> patches -> volume

With causal temporal attention and the grid layout of the position convolution (the defaults), a
token depends on its own and earlier slices only, in both directions; published weights need
"bidirectional" and "interleaved", and a norm of the raw patches (`patch_norm` "both").
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike

from gct_jax.array_types import TokenIds, TokenMask, Tokens, Volume
from gct_jax.errors import ConfigError
from gct_jax.kernels.linear import matrix_product
from gct_jax.models.norms import layer_norm
from gct_jax.models.positions import ContinuousPositionBias
from gct_jax.models.quantizer import CosineQuantizer, straight_through
from gct_jax.models.token_grid import PatchSize, patch_sides, token_grid
from gct_jax.models.transformer import Transformer


class CTViTOutput(NamedTuple):
    """Result of a whole pass.

    reconstruction: [batch, depth, height, width, channels].
    ids: [batch, t, h, w] int32.
    latents: [batch, t, h, w, dim], the encoder's output.
    codes: [batch, t, h, w, dim], the code rows that were decoded, with the latents' gradient.
    features: [batch, t, h, w, dim], the decoder's output before the pixel layers.
    """

    reconstruction: jax.Array
    ids: jax.Array
    latents: jax.Array
    codes: jax.Array
    features: jax.Array


def to_patches(
    volume: jax.Array, *, patch_size: PatchSize, temporal_patch_size: int
) -> tuple[jax.Array, jax.Array]:
    """Volume [batch, depth, height, width, channels] -> flattened patches of slice 0 [batch, 1, h,
    w, values] and of the others [batch, t - 1, h, w, values].

    Raises:
      InputError: a volume that the patches do not divide.
    """
    token_grid(*volume.shape[1:4], patch_size=patch_size, temporal_patch_size=temporal_patch_size)
    pattern = "b (t pt) (h ph) (w pw) c -> b t h w (c pt ph pw)"
    rows, columns = patch_sides(patch_size)
    size = {"ph": rows, "pw": columns}
    first = rearrange(volume[:, :1], pattern, pt=1, **size)
    return first, rearrange(volume[:, 1:], pattern, pt=temporal_patch_size, **size)


def slice_to_token_mask(
    slice_mask: jax.Array, grid: tuple[int, int, int], temporal_patch_size: int
) -> jax.Array:
    """[batch, depth] bool, True for a real slice -> [batch, t, h, w] bool.

    A token is valid if any slice of its patch is.
    """
    rest = rearrange(slice_mask[:, 1:], "b (t p) -> b t p", p=temporal_patch_size)
    frames = jnp.concatenate([slice_mask[:, :1], jnp.any(rest, axis=-1)], axis=1)  # [batch, t]
    return jnp.broadcast_to(frames[:, :, None, None], (slice_mask.shape[0], *grid))


class PatchEmbedding(nn.Module):
    """Linear, layer norm on flattened patches; with `normalize_input` a layer norm before both.

    That first norm erases the mean and the contrast of each patch, so that even tissue of any
    density looks alike.

    Attributes:
      dim: width of the tokens.
      dtype: computation type; norms and softmax stay float32.
    """

    dim: int = 512
    normalize_input: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, patches: jax.Array) -> jax.Array:
        """[..., patch values] -> [..., dim]."""
        if self.normalize_input:
            patches = layer_norm("norm_in", self.dtype)(patches)
        # A bias from the start: the norm below would otherwise hide how bright an even patch is.
        bias_init = nn.initializers.normal(0.5)
        linear = nn.Dense(
            self.dim,
            dtype=self.dtype,
            bias_init=bias_init,
            dot_general=matrix_product,
            name="linear",
        )
        x = linear(patches)
        return layer_norm("norm_out", self.dtype)(x)


class CTViT(nn.Module):
    """CT-ViT; fields as in `gct_jax.config.CTViTConfig`.

    Attributes:
      channels: channels of the volume.
      dim, heads, dim_head: width, heads and head width of all four transformers.
      codebook_size: number of codes.
      patch_size: pixels along each side of a patch in the slice, or (height, width).
      temporal_patch_size: slices in a patch, except for slice 0.
      spatial_depth, temporal_depth: layers of each spatial and each temporal transformer.
      temporal_attention: "causal", or "bidirectional" for published weights.
      temporal_peg: "grid", or "interleaved" for published weights (see `PositionConvolution`).
      patch_norm: "output" normalises embedded patches only, so that their density in HU reaches
        the network; "both" normalises raw patches too, for published weights.
      remat: of the transformers' layers, see `Transformer`.
      dtype: computation type; parameters, norms, softmax and codebook are float32.

    Volumes are [batch, depth, height, width, channels], HU / 1000 in [-1, 1]. Any depth that
    `token_grid` accepts works, whatever the module was initialised with.
    """

    channels: int = 1
    dim: int = 512
    codebook_size: int = 8192
    patch_size: PatchSize = 16
    temporal_patch_size: int = 2
    spatial_depth: int = 4
    temporal_depth: int = 4
    heads: int = 8
    dim_head: int = 32
    temporal_attention: str = "causal"
    temporal_peg: str = "grid"
    patch_norm: str = "output"
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    def setup(self):  # noqa: D102 (Flax hook)
        if self.temporal_attention not in ("causal", "bidirectional"):
            raise ConfigError(f"temporal_attention {self.temporal_attention!r} is unknown")

        def spatial():
            return Transformer(
                self.dim,
                self.spatial_depth,
                self.heads,
                self.dim_head,
                attend="space",
                remat=self.remat,
                dtype=self.dtype,
            )

        def temporal():
            return Transformer(
                self.dim,
                self.temporal_depth,
                self.heads,
                self.dim_head,
                attend="time",
                causal=self.temporal_attention == "causal",
                peg_layout=self.temporal_peg,
                remat=self.remat,
                dtype=self.dtype,
            )

        if self.patch_norm not in ("output", "both"):
            raise ConfigError(f"patch_norm {self.patch_norm!r} is unknown")
        both_norms = self.patch_norm == "both"
        rows, columns = patch_sides(self.patch_size)
        slice_values = self.channels * rows * columns
        self.first_patch_embedding = PatchEmbedding(self.dim, both_norms, self.dtype)
        self.patch_embedding = PatchEmbedding(self.dim, both_norms, self.dtype)
        self.spatial_bias = ContinuousPositionBias(self.dim, self.heads, grid_dims=2)
        self.encoder_spatial = spatial()
        self.encoder_temporal = temporal()
        self.quantizer = CosineQuantizer(self.dim, self.codebook_size)
        self.decoder_temporal = temporal()
        self.decoder_spatial = spatial()
        pixels = functools.partial(nn.Dense, dtype=self.dtype, dot_general=matrix_product)
        self.first_pixels = pixels(slice_values)
        self.pixels = pixels(slice_values * self.temporal_patch_size)

    def embed_patches(self, volume: Volume) -> Tokens:
        """Volume -> patch embeddings [batch, t, h, w, dim], the encoder's input.

        Raises:
          InputError: a volume that the patches do not divide.
        """
        first, rest = to_patches(
            volume, patch_size=self.patch_size, temporal_patch_size=self.temporal_patch_size
        )
        return jnp.concatenate(
            [self.first_patch_embedding(first), self.patch_embedding(rest)], axis=1
        )

    def embed(self, volume: Volume, token_mask: TokenMask | None = None) -> Tokens:
        """Volume -> latents [batch, t, h, w, dim], before quantisation.

        token_mask: [batch, t, h, w] bool, False where a volume is padded at its end, see
          `slice_to_token_mask`; None: nowhere.

        Raises:
          ConfigError: a mask for the "interleaved" layout, which mixes padding with the rest.
        """
        self._check_mask(token_mask)
        x = self.embed_patches(volume)
        x = self.encoder_spatial(x, self.spatial_bias(x.shape[1:4]), token_mask=token_mask)
        return self.encoder_temporal(x, token_mask=token_mask)

    def encode(self, volume: Volume) -> TokenIds:
        """Volume -> token ids [batch, t, h, w] int32."""
        return self.quantizer.choose(self.embed(volume))

    def decode_features(self, codes: Tokens, token_mask: TokenMask | None = None) -> Tokens:
        """Code rows [batch, t, h, w, dim] -> decoder output of the same shape; token_mask as for
        `embed`."""
        self._check_mask(token_mask)
        x = self.decoder_temporal(codes.astype(self.dtype), token_mask=token_mask)
        return self.decoder_spatial(x, self.spatial_bias(x.shape[1:4]), token_mask=token_mask)

    def _check_mask(self, token_mask: jax.Array | None) -> None:
        if token_mask is not None and self.temporal_peg != "grid":
            raise ConfigError(
                f"temporal_peg {self.temporal_peg!r} mixes padding with real slices: train it on "
                "volumes of one depth"
            )

    def to_pixels(self, features: Tokens) -> Volume:
        """Decoder output [batch, t, h, w, dim] -> volume, float32, not clipped."""
        pattern = "b t h w (c pt ph pw) -> b (t pt) (h ph) (w pw) c"
        rows, columns = patch_sides(self.patch_size)
        size = {"c": self.channels, "ph": rows, "pw": columns}
        first = rearrange(self.first_pixels(features[:, :1]), pattern, pt=1, **size)
        rest = rearrange(self.pixels(features[:, 1:]), pattern, pt=self.temporal_patch_size, **size)
        return jnp.concatenate([first, rest], axis=1).astype(jnp.float32)

    def decode_latents(self, codes: Tokens) -> Volume:
        """Code rows [batch, t, h, w, dim] -> volume."""
        return self.to_pixels(self.decode_features(codes))

    def decode(self, ids: TokenIds) -> Volume:
        """Token ids [batch, t, h, w] -> volume [batch, depth, height, width, channels]."""
        return self.decode_latents(self.quantizer.lookup(ids))

    def __call__(self, volume: Volume, token_mask: TokenMask | None = None) -> CTViTOutput:
        """Encode, quantise with a straight-through gradient, decode; token_mask as for `embed`."""
        latents = self.embed(volume, token_mask)
        ids = self.quantizer.choose(latents)
        codes = straight_through(latents, self.quantizer.lookup(ids))
        features = self.decode_features(codes, token_mask)
        return CTViTOutput(self.to_pixels(features), ids, latents, codes, features)

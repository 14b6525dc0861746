"""Efficient text-conditioned U-Net for super-resolution (Saharia et al. 2022, "Imagen", B.1).

    [cond image, x, self condition, low-res image] -> initial convolution
    downs: (halve) -> ResNet + cross attention -> n ResNet -> attention -> (halve)
    middle: ResNet + cross attention -> attention -> ResNet + cross attention
    ups: mirror image, with the outputs of the downs concatenated
    -> final ResNet -> [., low-res image] -> 3x3 convolution

In the memory-efficient form every level starts by halving the image, the first one too, so that
no level works at full resolution; otherwise levels end by halving it and the last one keeps it.
"""

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Bool, Float

from gct_jax.array_types import Array, Images, PerImage, Text, TextMask
from gct_jax.errors import InputError
from gct_jax.kernels.remat import rematerialized
from gct_jax.models.unet_attention import CrossAttention, MapTransformer
from gct_jax.models.unet_blocks import (
    Block,
    CrossEmbed,
    FinalConv,
    NearestUpsample,
    PixelShuffle,
    ResnetBlock,
    Widen,
    conv,
)
from gct_jax.models.unet_conditioning import Conditioning

COMBINER_GROUPS = 8


class UNet(nn.Module):
    """Predicts the diffusion target of a slice from its noised version, see the module docstring.

    Attributes:
      dim: channels of the finest level.
      init_dim: channels of the first convolution; None: `dim`.
      cond_dim: width of the conditioning tokens; None: `dim`.
      channels, channels_out: of the image and of the output; None: as the image.
      dim_mults: channels of each level, in units of `dim`.
      num_resnet_blocks, resnet_groups: ResNet blocks of each level and the groups of their norms.
      layer_attns, layer_attns_depth: "none", "full" or "linear" self attention behind each level,
        and how many layers of it.
      layer_cross_attns, use_linear_cross_attn: whether each level attends to the text, and whether
        without a softmax; the latter one value, or one per level.
      attend_at_middle, layer_mid_attns_depth: self attention at the coarsest level, and its layers.
      attn_heads, attn_dim_head, mid_cross_attn_heads, mid_cross_attn_dim_head: sizes of the
        attention, and of that to the text in the middle blocks.
      cosine_sim_attn: logits are 16 times the cosine of query and key.
      ff_mult: hidden units of the feed-forward networks per channel.
      lowres_cond: the network sees a low-resolution image beside the noised one.
      text_embed_dim, max_text_len: width and length of the text embeddings; None: no text.
      attn_pool_text, attn_pool_num_latents: pool the text by attention, with so many latents.
      num_time_tokens, learned_sinu_pos_emb_dim: tokens and frequencies that tell the noise level.
      self_cond: the network sees its previous prediction.
      cond_images_channels: channels of a further image that conditions; 0: none.
      init_cross_embed_kernel_sizes, init_conv_kernel_size: windows of the first convolutions side
        by side, or None for one convolution with that window.
      cross_embed_downsample_kernel_sizes: windows of the down-sampling; None: space-to-depth.
      memory_efficient: down-sample before the blocks of a level, not behind them.
      pixel_shuffle_upsample: up-sample by pixel shuffle, not by repeating pixels.
      combine_upsample_fmaps: the last block sees the features of all levels.
      init_conv_to_final_conv_residual: the last block sees the first convolution's output.
      use_global_context_attn: blocks gate channels by a summary of the map.
      final_resnet_block: a ResNet block before the last convolution.
      scale_skip_connection: skips are divided by sqrt(2).
      backend: of the attention to the text, see `CrossAttention`, and of the convolutions, see
        `Block`.
      dtype: computation type; norms, softmax and the output stay float32.
      remat: the backward pass computes each ResNet block again instead of keeping it.
    """

    dim: int = 64
    init_dim: int | None = None
    cond_dim: int | None = None
    channels: int = 1
    channels_out: int | None = None
    dim_mults: tuple[int, ...] = (1, 2, 4)
    num_resnet_blocks: tuple[int, ...] = (2, 2, 2)
    layer_attns: tuple[str, ...] = ("none", "none", "none")
    layer_attns_depth: tuple[int, ...] = (1, 1, 1)
    layer_cross_attns: tuple[bool, ...] = (True, True, True)
    use_linear_cross_attn: bool | tuple[bool, ...] = False
    attend_at_middle: bool = False
    layer_mid_attns_depth: int = 1
    attn_heads: int = 8
    attn_dim_head: int = 64
    mid_cross_attn_heads: int = 8
    mid_cross_attn_dim_head: int = 64
    cosine_sim_attn: bool = False
    ff_mult: float = 2.0
    lowres_cond: bool = True
    text_embed_dim: int | None = 768
    max_text_len: int = 256
    attn_pool_text: bool = True
    attn_pool_num_latents: int = 32
    num_time_tokens: int = 2
    learned_sinu_pos_emb_dim: int = 16
    self_cond: bool = False
    cond_images_channels: int = 0
    init_cross_embed_kernel_sizes: tuple[int, ...] | None = (3, 7, 15)
    init_conv_kernel_size: int = 7
    cross_embed_downsample_kernel_sizes: tuple[int, ...] | None = None
    memory_efficient: bool = True
    pixel_shuffle_upsample: bool = True
    combine_upsample_fmaps: bool = False
    init_conv_to_final_conv_residual: bool = False
    use_global_context_attn: bool = True
    final_resnet_block: bool = True
    scale_skip_connection: bool = True
    resnet_groups: tuple[int, ...] = (8, 8, 8)
    backend: str = "auto"
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x: Images,
        log_snr: PerImage,
        *,
        low_res: Images | None = None,
        low_res_log_snr: PerImage | None = None,
        text: Text | None = None,
        text_mask: TextMask | None = None,
        keep_text: Bool[Array, "batch"] | None = None,
        self_cond: Images | None = None,
        cond_images: Float[Array, "batch cond_height cond_width cond_channels"] | None = None,
    ) -> Float[Array, "batch height width out_channels"]:
        """Network output for the noised image `x`.

        Args:
          x: [batch, height, width, channels], sides divisible by the total reduction.
          log_snr: [batch], log SNR of the diffusion time.
          low_res: [batch, height, width, channels], resized and noised; with `lowres_cond`.
          low_res_log_snr: [batch], log SNR of that noise.
          text: [batch, length, text_embed_dim] or None for no text tokens at all (which is not
            the null condition: for that give the text with `keep_text` False).
          text_mask: [batch, length] bool, False where padded.
          keep_text: [batch] bool, False where the text is to be dropped; None keeps all.
          self_cond: [batch, height, width, channels], earlier prediction of x_0; zeros if None.
          cond_images: [batch, height, width, cond_images_channels].

        Returns:
          [batch, height, width, channels_out] float32.

        Raises:
          InputError: an input that the configuration needs is absent, or a shape does not fit.
        """
        self._check_image(x)
        self._check_presence("low_res", low_res, self.lowres_cond)
        self._check_presence("low_res_log_snr", low_res_log_snr, self.lowres_cond)
        self._check_presence("cond_images", cond_images, self.cond_images_channels > 0)
        if text is not None and text.shape[-1] != self.text_embed_dim:
            raise InputError(f"text is {text.shape[-1]} wide, not {self.text_embed_dim}")
        time, tokens = self._conditioning()(log_snr, low_res_log_snr, text, text_mask, keep_text)
        if self.self_cond and self_cond is None:
            self_cond = jnp.zeros_like(x)
        self._check_presence("self_cond", self_cond, self.self_cond)
        inputs = [part for part in (cond_images, x, self_cond, low_res) if part is not None]
        x = self._initial_conv()(jnp.concatenate(inputs, axis=-1))
        initial = x
        if self.memory_efficient:
            x = self._run(self._resnet(x.shape[-1], 0, "initial_block", gate=True), x, time)

        x, skips = self._down_path(x, time, tokens)
        x = self._middle(x, time, tokens)
        x, features = self._up_path(x, skips, initial.shape[-1], time, tokens)

        if self.combine_upsample_fmaps:
            x = self._combine(x, features)
        if self.init_conv_to_final_conv_residual:
            x = jnp.concatenate([x, initial], axis=-1)
        if self.final_resnet_block:
            # The reference gates this block whatever `use_global_context_attn` says.
            final = ResnetBlock(
                self.dim,
                self.resnet_groups[0],
                gate=True,
                dtype=self.dtype,
                backend=self.backend,
                name="final_block",
            )
            x = self._run(final, x, time)
        final_conv = FinalConv(self.channels_out or self.channels, self.dtype, name="final_conv")
        return final_conv(x, low_res).astype(jnp.float32)

    def _check_image(self, x: Array) -> None:
        reduction = 2 ** (len(self.dim_mults) - (0 if self.memory_efficient else 1))
        if x.shape[1] % reduction or x.shape[2] % reduction:
            raise InputError(f"image sides {x.shape[1:3]} must be divisible by {reduction}")

    def _check_presence(self, name: str, value: Array | None, wanted: bool) -> None:
        if (value is not None) != wanted:
            raise InputError(f"this U-Net is {'' if wanted else 'not '}conditioned on {name}")

    def _conditioning(self) -> Conditioning:
        return Conditioning(
            width=4 * self.dim * (2 if self.lowres_cond else 1),
            token_dim=self.cond_dim or self.dim,
            num_time_tokens=self.num_time_tokens,
            sinusoid_dim=self.learned_sinu_pos_emb_dim,
            max_text_len=self.max_text_len,
            attn_pool_text=self.attn_pool_text,
            attn_pool_num_latents=self.attn_pool_num_latents,
            heads=self.attn_heads,
            dim_head=self.attn_dim_head,
            cosine=self.cosine_sim_attn,
            dtype=self.dtype,
            name="conditioning",
        )

    def _initial_conv(self) -> nn.Module:
        features = self.init_dim or self.dim
        if self.init_cross_embed_kernel_sizes is None:
            size = self.init_conv_kernel_size
            return conv(features, size, dtype=self.dtype, name="initial_conv")
        sizes = self.init_cross_embed_kernel_sizes
        return CrossEmbed(features, sizes, dtype=self.dtype, name="initial_conv")

    def _resnet(
        self, features: int, level: int, name: str, *, gate: bool = False, cross: bool = False
    ) -> ResnetBlock:
        linear = self.use_linear_cross_attn
        attention = functools.partial(
            CrossAttention,
            self.attn_heads,
            self.attn_dim_head,
            self.cosine_sim_attn,
            linear if isinstance(linear, bool) else linear[level],
            self.backend,
        )
        return ResnetBlock(
            features,
            self.resnet_groups[level],
            gate and self.use_global_context_attn,
            attention if cross else None,
            self.dtype,
            self.backend,
            name=name,
        )

    def _run(self, block: ResnetBlock, x: Array, *conditions: Array) -> Array:
        if self.remat and not self.is_initializing():
            return rematerialized(block, x, *conditions)
        out: Array = block(x, *conditions)
        return out

    def _level(self, level: int, features: int, name: str) -> tuple[ResnetBlock, list, Any]:
        """The modules of one level in one direction: first block, further blocks, attention."""
        first = self._resnet(
            features, level, f"{name}_cross_block", cross=self.layer_cross_attns[level]
        )
        blocks = [
            self._resnet(features, level, f"{name}_block_{i}", gate=True)
            for i in range(self.num_resnet_blocks[level])
        ]
        if self.layer_attns[level] == "none":
            return first, blocks, lambda x, tokens: x
        return (
            first,
            blocks,
            MapTransformer(
                self.layer_attns[level],
                self.layer_attns_depth[level],
                self.attn_heads,
                self.attn_dim_head,
                self.ff_mult,
                self.cosine_sim_attn,
                self.dtype,
                name=f"{name}_attention",
            ),
        )

    def _down_path(self, x: Array, time: Array, tokens: Array) -> tuple[Array, list[Array]]:
        skips = []
        last = len(self.dim_mults) - 1
        for level, mult in enumerate(self.dim_mults):
            features = self.dim * mult
            if self.memory_efficient:
                x = self._halve(features, f"down_{level}_resize")(x)
            first, blocks, attention = self._level(level, x.shape[-1], f"down_{level}")
            x = self._run(first, x, time, tokens)
            for block in blocks:
                x = self._run(block, x, time)
                skips.append(x)
            x = attention(x, tokens)
            skips.append(x)
            if not self.memory_efficient and level < last:
                x = self._halve(features, f"down_{level}_resize")(x)
            elif not self.memory_efficient:
                x = Widen(features, self.dtype, name=f"down_{level}_resize")(x)
        return x, skips

    def _middle(self, x: Array, time: Array, tokens: Array) -> Array:
        attention = functools.partial(
            CrossAttention,
            self.mid_cross_attn_heads,
            self.mid_cross_attn_dim_head,
            backend=self.backend,
        )
        block = functools.partial(
            ResnetBlock,
            x.shape[-1],
            self.resnet_groups[-1],
            cross_attention=attention,
            dtype=self.dtype,
            backend=self.backend,
        )
        x = self._run(block(name="middle_block1"), x, time, tokens)
        if self.attend_at_middle:
            x = MapTransformer(
                "full",
                self.layer_mid_attns_depth,
                self.attn_heads,
                self.attn_dim_head,
                2.0,
                self.cosine_sim_attn,
                self.dtype,
                name="middle_attention",
            )(x)
        return self._run(block(name="middle_block2"), x, time, tokens)

    def _up_path(
        self, x: Array, skips: list[Array], init_dim: int, time: Array, tokens: Array
    ) -> tuple[Array, list[Array]]:
        skips = list(skips)
        scale = 2**-0.5 if self.scale_skip_connection else 1.0

        def with_skip(x: Array) -> Array:
            return jnp.concatenate([x, skips.pop() * scale], axis=-1)

        upsample = PixelShuffle if self.pixel_shuffle_upsample else NearestUpsample
        features = []
        for level in reversed(range(len(self.dim_mults))):
            name = f"up_{level}"
            first, blocks, attention = self._level(level, self.dim * self.dim_mults[level], name)
            x = self._run(first, with_skip(x), time, tokens)
            for block in blocks:
                x = self._run(block, with_skip(x), time)
            x = attention(x, tokens)
            features.append(x)
            if level > 0 or self.memory_efficient:
                below = self.dim * self.dim_mults[level - 1] if level > 0 else init_dim
                x = upsample(below, self.dtype, name=f"{name}_resize")(x)
        return x, features

    def _halve(self, features: int, name: str) -> nn.Module:
        """Halves height and width; the plain form is space-to-depth and a 1x1 convolution, which
        together are a 2x2 convolution of stride 2."""
        if self.cross_embed_downsample_kernel_sizes is None:
            return conv(features, 2, strides=(2, 2), dtype=self.dtype, name=name)
        sizes = self.cross_embed_downsample_kernel_sizes
        return CrossEmbed(features, sizes, stride=2, dtype=self.dtype, name=name)

    def _combine(self, x: Array, features: list[Array]) -> Array:
        """Concatenates a Block of the output of every up level, enlarged to the size of `x`."""
        maps = [x]
        for i, feature in enumerate(features):
            factor = x.shape[1] // feature.shape[1]
            feature = jnp.repeat(jnp.repeat(feature, factor, axis=1), factor, axis=2)
            block = Block(self.dim, COMBINER_GROUPS, self.dtype, self.backend, name=f"combine_{i}")
            maps.append(block(feature))
        return jnp.concatenate(maps, axis=-1)

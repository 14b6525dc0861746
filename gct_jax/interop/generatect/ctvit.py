"""PyTorch names and layouts of CT-ViT, its codebook and its slice discriminator."""

import dataclasses
import math
from collections.abc import Collection, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gct_jax.components import abstract_variables
from gct_jax.config import CTViTConfig, ModelConfig
from gct_jax.errors import InputError, ModelFolderError
from gct_jax.interop.generatect import transformer as blocks
from gct_jax.interop.generatect.layout import (
    Idle,
    Layout,
    Link,
    Params,
    State,
    count_indices,
    link,
    sizes,
    without_prefix,
)
from gct_jax.models.discriminator import Discriminator
from gct_jax.models.token_grid import patch_sides
from gct_jax.random_keys import random_key
from gct_jax.ranges import Checked, number

TRANSFORMERS = {
    "encoder_spatial": "enc_spatial_transformer",
    "encoder_temporal": "enc_temporal_transformer",
    "decoder_spatial": "dec_spatial_transformer",
    "decoder_temporal": "dec_temporal_transformer",
}
EMBEDDINGS = {
    "first_patch_embedding": "to_patch_emb_first_frame",
    "patch_embedding": "to_patch_emb",
}
# The only arithmetic that the reference knows.
REFERENCE_OPTIONS: dict[str, Any] = {
    "temporal_attention": "bidirectional",
    "temporal_peg": "interleaved",
    "patch_norm": "both",
}
DISCRIMINATOR_INPUT = "discr.blocks.0.conv_res.weight"
DISCRIMINATOR_HEADS = {"heads": 8, "dim_head": 64}


@dataclasses.dataclass(frozen=True)
class NotInferable(Checked):
    """Fields of `CTViTConfig` that leave no trace in names and shapes. None: `channels` are those
    that the discriminator sees, or 1 without one; patches are square."""

    channels: int | None = number(None, least=1)
    patch_size: int | tuple[int, int] | None = number(None, least=1, length=2)


def assumptions(state: State, config: CTViTConfig, given: Collection[str]) -> dict[str, Any]:
    """Fields that the weights do not tell and that were not `given`, with the values assumed."""
    silent = {"patch_size"} | ({"channels"} if DISCRIMINATOR_INPUT not in state else set())
    return {name: getattr(config, name) for name in sorted(silent - set(given))}


def ctvit_from_reference(state: State, **not_inferable: Any) -> tuple[CTViTConfig, Params]:
    """Published CT-ViT weights -> config and variables {"params", "codebook"} of `CTViT`.

    The options that reproduce the original's arithmetic are set in the config. Discriminator
    ("discr.") and perceptual network ("vgg.") are no part of CT-ViT and passed over.

    Args:
      state: arrays by name.
      **not_inferable: fields of `CTViTConfig` named in `NotInferable`.

    Raises:
      ModelFolderError: a tensor is missing or unknown, or the shapes contradict each other.
    """
    config = _config(state, NotInferable(**not_inferable))
    return config, ctvit_layout(config).from_reference(state)


def ctvit_to_reference(
    config: CTViTConfig, variables: Params, kept: State | None = None
) -> dict[str, np.ndarray]:
    """The inverse of `ctvit_from_reference`; `kept` is explained at `Layout.to_reference`.

    Without a discriminator and perceptual network in `kept`, the file is for a reference built
    with `use_vgg_and_gan=False`.

    Raises:
      InputError: the model has an option that the reference cannot reproduce.
    """
    return ctvit_layout(config).to_reference(variables, kept)


def ctvit_layout(config: CTViTConfig) -> Layout:
    """Which tensor of the reference holds which variable of `CTViT`.

    Raises:
      InputError: the model has an option that the reference cannot reproduce.
    """
    for name, value in REFERENCE_OPTIONS.items():
        if getattr(config, name) != value:
            raise InputError(
                f"the PyTorch reference cannot run a CT-ViT with {name} = "
                f"{getattr(config, name)!r}, only with {value!r}"
            )
    variables = abstract_variables(ModelConfig(ctvit=config), "ctvit")
    return Layout.of(variables, _entries(config), foreign=("discr.", "vgg."))


def _entries(config: CTViTConfig) -> Iterator[Link | Idle]:
    for name, theirs in TRANSFORMERS.items():
        yield from blocks.transformer(
            f"params.{name}",
            theirs,
            dim=config.dim,
            depth=config.spatial_depth if "spatial" in name else config.temporal_depth,
            heads=config.heads,
            dim_head=config.dim_head,
        )
    for name, theirs in EMBEDDINGS.items():
        yield from blocks.layer_norm(f"params.{name}.norm_in", f"{theirs}.1")
        yield from blocks.dense(f"params.{name}.linear", f"{theirs}.2")
        yield from blocks.layer_norm(f"params.{name}.norm_out", f"{theirs}.3")
    yield from blocks.position_bias("params.spatial_bias", "spatial_rel_pos_bias")
    yield from blocks.dense("params.first_pixels", "to_pixels_first_frame.0")
    yield from blocks.dense("params.pixels", "to_pixels.0")
    yield from _codebook("codebook.quantizer", "vq._codebook")


def _codebook(ours: str, theirs: str) -> Iterator[Link | Idle]:
    yield link(f"{ours}.embedding", f"{theirs}.embed", "1 code d -> code d")
    yield link(f"{ours}.cluster_size", f"{theirs}.cluster_size", "1 code -> code")
    yield Idle(f"{theirs}.initted", np.ones(1, np.float32))


def codebook_layout(codebook_size: int, dim: int) -> Layout:
    """The codebook alone, as the reference's quantiser stores it."""
    shapes = {"embedding": (codebook_size, dim), "cluster_size": (codebook_size,)}
    abstract = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    return Layout.of({"codebook": abstract}, _codebook("codebook", "_codebook"))


def _config(state: State, options: NotInferable) -> CTViTConfig:
    _, codes, dim = sizes(state, "vq._codebook.embed", 3)
    (slice_values,) = sizes(state, "to_pixels_first_frame.0.bias", 1)
    (patch_values,) = sizes(state, "to_pixels.0.bias", 1)
    discriminator = state.get(DISCRIMINATOR_INPUT)
    channels = options.channels
    if channels is None:
        channels = 1 if discriminator is None else discriminator.shape[1]
    patch_size: Any = options.patch_size
    if patch_size is None:
        patch_size = math.isqrt(slice_values // channels)
    rows, columns = patch_sides(patch_size)
    if rows * columns * channels != slice_values or patch_values % slice_values:
        shape = "square patches" if options.patch_size is None else f"patches of {patch_size}"
        raise ModelFolderError(
            f"patches of {slice_values} and {patch_values} values are not {shape} of {channels} "
            "channel(s); state them with --set 'ctvit.patch_size=(HEIGHT, WIDTH)' and "
            "--set ctvit.channels=N"
        )
    temporal, spatial = (f"enc_{kind}_transformer.layers." for kind in ("temporal", "spatial"))
    return CTViTConfig(
        channels=channels,
        dim=dim,
        codebook_size=codes,
        patch_size=patch_size,
        temporal_patch_size=patch_values // slice_values,
        spatial_depth=count_indices(state, spatial),
        temporal_depth=count_indices(state, temporal),
        heads=sizes(state, "spatial_rel_pos_bias.net.2.bias", 1)[0],
        dim_head=sizes(state, f"{spatial}0.1.q_scale", 1)[0],
        **REFERENCE_OPTIONS,
    )


def discriminator_from_reference(
    state: State, prefix: str = "discr."
) -> tuple[dict[str, Any], Params]:
    """Published discriminator weights -> attributes and parameters of `Discriminator`.

    The sizes of the maps that it attends to follow from the numbers of its attention blocks.

    Raises:
      ModelFolderError: a tensor is missing.
    """
    state = without_prefix(state, prefix)
    width, channels, *_ = sizes(state, "blocks.0.conv_res.weight", 4)
    side = 2 ** (count_indices(state, "blocks.") + 1)
    attended = {name.split(".")[1] for name in state if name.startswith("attn_blocks.")}
    base_dim = width // 4
    attention_sizes = tuple(side >> int(i) for i in sorted(attended, key=int))
    layout = discriminator_layout(base_dim, attention_sizes, channels, side)
    attributes = {"base_dim": base_dim, "attention_sizes": attention_sizes}
    return attributes, layout.from_reference(state)["params"]


def discriminator_layout(
    base_dim: int, attention_sizes: tuple[int, ...] = (16,), channels: int = 1, side: int = 128
) -> Layout:
    """Which tensor of the reference holds which variable of `Discriminator`.

    side: of the images that it was built for, 128 in the published system.
    """
    images = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    init = Discriminator(base_dim, attention_sizes).init
    abstract = jax.eval_shape(init, random_key(0), images)
    return Layout.of(abstract, _discriminator_entries(abstract["params"]))


def _discriminator_entries(params: Params) -> Iterator[Link | Idle]:
    for i in range(sum(name.startswith("block_") for name in params)):
        block, theirs = f"params.block_{i}", f"blocks.{i}"
        yield from _convolution(f"{block}.residual", f"{theirs}.conv_res")
        yield from _convolution(f"{block}.conv_0", f"{theirs}.net.0")
        yield from _convolution(f"{block}.conv_1", f"{theirs}.net.2")
        yield from _convolution(f"{block}.downsample", f"{theirs}.downsample.1")
        if f"attention_{i}" in params:
            dim = params[f"attention_{i}"]["norm"]["scale"].shape[0]
            ours, theirs = f"params.attention_{i}", f"attn_blocks.{i}"
            yield from blocks.attention(ours, theirs, dim=dim, **DISCRIMINATOR_HEADS)
    yield from _convolution("params.conv_out", "to_logits.0")
    yield from blocks.dense("params.logit", "to_logits.3")


def _convolution(ours: str, theirs: str) -> Iterator[Link]:
    yield link(f"{ours}.kernel", f"{theirs}.weight", "o i h w -> h w i o")
    yield link(f"{ours}.bias", f"{theirs}.bias")

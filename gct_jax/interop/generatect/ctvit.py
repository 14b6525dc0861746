"""PyTorch names and layouts of CT-ViT and its slice discriminator."""

import math

import numpy as np
from einops import rearrange

from gct_jax.config import CTViTConfig
from gct_jax.errors import ModelFolderError
from gct_jax.interop.generatect import transformer as blocks
from gct_jax.interop.generatect.transformer import Params, State, tensor

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
KNOWN_PREFIXES = (
    *(f"{name}." for name in (*TRANSFORMERS.values(), *EMBEDDINGS.values())),
    "spatial_rel_pos_bias.",
    "vq._codebook.",
    "to_pixels_first_frame.0.",
    "to_pixels.0.",
    "discr.",
    "vgg.",
)


def ctvit_from_reference(state: State) -> tuple[CTViTConfig, Params]:
    """Published CT-ViT weights -> config and variables {"params", "codebook"} of `CTViT`.

    The options that reproduce the original's arithmetic are set in the config. Discriminator
    ("discr.") and perceptual network ("vgg.") are no part of the tokenizer and passed over.

    Raises:
      ModelFolderError: a tensor is missing or unknown, or the shapes contradict each other.
    """
    blocks.require_known(state, KNOWN_PREFIXES)
    params: Params = {
        name: blocks.transformer(state, theirs) for name, theirs in TRANSFORMERS.items()
    }
    for name, theirs in EMBEDDINGS.items():
        params[name] = {
            "norm_in": blocks.layer_norm(state, f"{theirs}.1"),
            "linear": blocks.dense(state, f"{theirs}.2"),
            "norm_out": blocks.layer_norm(state, f"{theirs}.3"),
        }
    params["spatial_bias"] = blocks.position_bias(state, "spatial_rel_pos_bias")
    params["first_pixels"] = blocks.dense(state, "to_pixels_first_frame.0")
    params["pixels"] = blocks.dense(state, "to_pixels.0")
    codebook = {
        "embedding": tensor(state, "vq._codebook.embed")[0],
        "cluster_size": tensor(state, "vq._codebook.cluster_size")[0],
    }
    return _config(state), {"params": params, "codebook": {"quantizer": codebook}}


def _config(state: State) -> CTViTConfig:
    codes, dim = tensor(state, "vq._codebook.embed").shape[1:]
    slice_values = len(tensor(state, "to_pixels_first_frame.0.bias"))
    patch_values = len(tensor(state, "to_pixels.0.bias"))
    discriminator = state.get("discr.blocks.0.conv_res.weight")
    channels = 1 if discriminator is None else discriminator.shape[1]
    patch_size = math.isqrt(slice_values // channels)
    if patch_size**2 * channels != slice_values or patch_values % slice_values:
        raise ModelFolderError(
            f"patches of {slice_values} and {patch_values} values are not square patches of "
            f"{channels} channel(s)"
        )
    temporal, spatial = (f"enc_{kind}_transformer.layers." for kind in ("temporal", "spatial"))
    return CTViTConfig(
        channels=channels,
        dim=dim,
        codebook_size=codes,
        patch_size=patch_size,
        temporal_patch_size=patch_values // slice_values,
        spatial_depth=blocks.count_indices(state, spatial),
        temporal_depth=blocks.count_indices(state, temporal),
        heads=len(tensor(state, "spatial_rel_pos_bias.net.2.bias")),
        dim_head=len(tensor(state, f"{spatial}0.1.q_scale")),
        temporal_attention="bidirectional",
        temporal_peg="interleaved",
        patch_norm="both",
    )


def _convolution(state: State, prefix: str) -> Params:
    kernel = rearrange(tensor(state, f"{prefix}.weight"), "o i h w -> h w i o")
    return {"kernel": np.ascontiguousarray(kernel), "bias": tensor(state, f"{prefix}.bias")}


def discriminator_from_reference(state: State, prefix: str = "discr.") -> tuple[int, Params]:
    """Published discriminator weights -> base width and parameters of `Discriminator`.

    Raises:
      ModelFolderError: a tensor is missing.
    """
    params: Params = {}
    for i in range(blocks.count_indices(state, f"{prefix}blocks.")):
        block = f"{prefix}blocks.{i}"
        params[f"block_{i}"] = {
            "residual": _convolution(state, f"{block}.conv_res"),
            "conv_0": _convolution(state, f"{block}.net.0"),
            "conv_1": _convolution(state, f"{block}.net.2"),
        }
        if f"{block}.downsample.1.weight" in state:
            params[f"block_{i}"]["downsample"] = _convolution(state, f"{block}.downsample.1")
        if f"{prefix}attn_blocks.{i}.to_q.weight" in state:
            params[f"attention_{i}"] = blocks.attention(state, f"{prefix}attn_blocks.{i}")
    params["conv_out"] = _convolution(state, f"{prefix}to_logits.0")
    params["logit"] = blocks.dense(state, f"{prefix}to_logits.3")
    return params["block_0"]["conv_0"]["bias"].shape[0] // 4, params

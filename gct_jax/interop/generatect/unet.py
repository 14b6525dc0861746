"""PyTorch names and layouts of the super-resolution U-Net.

1x1 convolutions become linear maps. Three layers are laid out anew: parallel convolutions are the
kernels of one `CrossEmbed`, space-to-depth with its 1x1 convolution is a 2x2 convolution of
stride 2, and the channels before a pixel shuffle are ordered (row, column, channel).

The functions yield links for everything that such a module may have; `Layout.of` keeps those whose
array the configured `UNet` really makes.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from gct_jax.components import abstract_variables
from gct_jax.config import ModelConfig, UNetConfig
from gct_jax.errors import InputError
from gct_jax.interop.generatect.layout import Idle, Layout, Link, Params, State, link
from gct_jax.interop.generatect.transformer import LINEAR_HALVES, dense, layer_norm
from gct_jax.interop.generatect.unet_config import infer_config

CONVOLUTION = "o i h w -> h w i o"
POINTWISE = "o i 1 1 -> i o"
POOL_LAYERS = 2
POOL_POSITIONS = 512
POOL_MEAN_LATENTS = 4
REFERENCE_MIDDLE = (8, 64)  # heads and their width, whatever its other options say


def unet_from_reference(state: State, **not_inferable: Any) -> tuple[UNetConfig, Params]:
    """Convert the state dict of one reference U-Net.

    Args:
      state: arrays by name, without the prefix `unets.1.` of a `Superres` state dict, or
        `1.ema_model.` of a trainer checkpoint's entry `ema`.
      **not_inferable: fields of `UNetConfig` that leave no trace in names and shapes, where they
        differ from the published ones; they are listed in `unet_config.NotInferable`.

    Returns:
      the configuration and {"params": ..} for `gct_jax.models.unet.UNet`.

    Raises:
      ModelFolderError: a tensor is missing, unknown or of a contradictory shape.
    """
    config = infer_config(state, **not_inferable)
    return config, unet_layout(config).from_reference(state)


def unet_to_reference(
    config: UNetConfig, variables: Params, kept: State | None = None
) -> dict[str, np.ndarray]:
    """The inverse of `unet_from_reference`; `kept` is explained at `Layout.to_reference`."""
    return unet_layout(config).to_reference(variables, kept)


def unet_layout(config: UNetConfig) -> Layout:
    """Which tensor of the reference holds which variable of `UNet`."""
    variables = abstract_variables(ModelConfig(superres=config), "superres")
    entries = list(_entries(config))
    if config.text_embed_dim is None and config.attn_pool_text:
        entries += _idle_pool(config)
    return Layout.of(variables, entries)


def require_reference_unet(config: UNetConfig) -> None:
    """Raise InputError for a U-Net that the reference cannot build."""
    middle = (config.mid_cross_attn_heads, config.mid_cross_attn_dim_head)
    if middle != REFERENCE_MIDDLE:
        raise InputError(
            f"the PyTorch reference cannot load a U-Net whose middle attention has {middle[0]} "
            f"heads of {middle[1]}, only one with {REFERENCE_MIDDLE[0]} heads of "
            f"{REFERENCE_MIDDLE[1]} (unet.mid_cross_attn_heads, .mid_cross_attn_dim_head)"
        )


def _entries(config: UNetConfig) -> Iterator[Link | Idle]:
    yield from _conditioning(config)
    yield from _embedding(
        "params.initial_conv",
        "init_conv",
        config.init_dim or config.dim,
        config.init_cross_embed_kernel_sizes,
    )
    yield from _resnet_block("params.initial_block", "init_resnet_block")
    yield from _resnet_block("params.middle_block1", "mid_block1")
    yield from _resnet_block("params.middle_block2", "mid_block2")
    yield from _map_transformer(
        "params.middle_attention", "mid_attn", config.layer_mid_attns_depth, linear=False
    )
    yield from _resnet_block("params.final_block", "final_res_block")
    yield from _convolution("params.final_conv", "final_conv")
    levels = len(config.dim_mults)
    for level in range(levels):
        up = f"ups.{levels - 1 - level}"  # counted from the innermost level
        yield from _level(config, level, "down", f"downs.{level}", 1)
        yield from _level(config, level, "up", up, 0)
        yield from _downsample(config, level)
        yield from _upsample(f"params.up_{level}_resize.conv", f"{up}.3", config)
        yield from _block(f"params.combine_{level}", f"upsample_combiner.fmap_convs.{level}")


def _level(
    config: UNetConfig, level: int, direction: str, theirs: str, first: int
) -> Iterator[Link]:
    """One level in one direction; its modules are numbered from `first` in the reference."""
    ours = f"params.{direction}_{level}"
    yield from _resnet_block(f"{ours}_cross_block", f"{theirs}.{first}")
    for i in range(config.num_resnet_blocks[level]):
        yield from _resnet_block(f"{ours}_block_{i}", f"{theirs}.{first + 1}.{i}")
    yield from _map_transformer(
        f"{ours}_attention",
        f"{theirs}.{first + 2}",
        config.layer_attns_depth[level],
        linear=config.layer_attns[level] == "linear",
    )


def _conditioning(config: UNetConfig) -> Iterator[Link | Idle]:
    ours = "params.conditioning"
    yield from layer_norm(f"{ours}.norm", "norm_cond")
    for name, theirs in (("noise_level", "time"), ("low_res_noise_level", "lowres_time")):
        yield link(f"{ours}.{name}.frequencies", f"to_{theirs}_hiddens.0.weights")
        yield from dense(f"{ours}.{name}.hidden", f"to_{theirs}_hiddens.1")
        yield from dense(f"{ours}.{name}.vector", f"to_{theirs}_cond.0")
        yield from dense(f"{ours}.{name}.tokens", f"to_{theirs}_tokens.0")
    if config.text_embed_dim is None:
        time_width = config.dim * (8 if config.lowres_cond else 4)
        token_shape = (1, config.max_text_len, config.cond_dim or config.dim)
        yield Idle("null_text_embed", np.zeros(token_shape, np.float32))
        yield Idle("null_text_hidden", np.zeros((1, time_width), np.float32))
        return
    ours = f"{ours}.text"
    yield link(f"{ours}.null_tokens", "null_text_embed", "1 position d -> position d")
    yield link(f"{ours}.null_vector", "null_text_hidden", "1 d -> d")
    yield from dense(f"{ours}.text", "text_to_cond")
    yield from layer_norm(f"{ours}.vector_norm", "to_text_non_attn_cond.0")
    yield from dense(f"{ours}.vector_hidden", "to_text_non_attn_cond.1")
    yield from dense(f"{ours}.vector", "to_text_non_attn_cond.3")
    yield from _attention_pool(f"{ours}.pool", "attn_pool")


def _attention_pool(ours: str, theirs: str) -> Iterator[Link]:
    yield link(f"{ours}.positions", f"{theirs}.pos_emb.weight")
    yield link(f"{ours}.latents", f"{theirs}.latents")
    yield _gain(f"{ours}.mean_norm", f"{theirs}.to_latents_from_mean_pooled_seq.0")
    yield from dense(f"{ours}.mean_latents", f"{theirs}.to_latents_from_mean_pooled_seq.1")
    for i in range(POOL_LAYERS):
        attention, layer = f"{ours}.attention_{i}", f"{theirs}.layers.{i}"
        yield from layer_norm(f"{attention}.norm", f"{layer}.0.norm")
        yield from layer_norm(f"{attention}.latents_norm", f"{layer}.0.norm_latents")
        yield from dense(f"{attention}.query", f"{layer}.0.to_q")
        yield from _key_value(attention, "", f"{layer}.0.to_kv")
        yield from dense(f"{attention}.out", f"{layer}.0.to_out.0")
        yield from layer_norm(f"{attention}.out_norm", f"{layer}.0.to_out.1")
        yield from _feed_forward(f"{ours}.feed_forward_{i}", f"{layer}.1")


def _idle_pool(config: UNetConfig) -> list[Idle]:
    """The text pooling that a U-Net without text stores too, although nothing reads it."""
    width, inner = config.cond_dim or config.dim, config.attn_heads * config.attn_dim_head
    shapes: dict[str, tuple[int, ...]] = {
        "pos_emb.weight": (POOL_POSITIONS, width),
        "latents": (config.attn_pool_num_latents, width),
        "to_latents_from_mean_pooled_seq.0.g": (width,),
        "to_latents_from_mean_pooled_seq.1.weight": (POOL_MEAN_LATENTS * width, width),
        "to_latents_from_mean_pooled_seq.1.bias": (POOL_MEAN_LATENTS * width,),
    }
    for i in range(POOL_LAYERS):
        for norm in ("norm", "norm_latents", "to_out.1"):
            shapes[f"layers.{i}.0.{norm}.weight"] = (width,)
            shapes[f"layers.{i}.0.{norm}.bias"] = (width,)
        shapes[f"layers.{i}.0.to_q.weight"] = (inner, width)
        shapes[f"layers.{i}.0.to_kv.weight"] = (2 * inner, width)
        shapes[f"layers.{i}.0.to_out.0.weight"] = (width, inner)
        shapes[f"layers.{i}.1.0.g"] = (width,)
        shapes[f"layers.{i}.1.1.weight"] = (4 * width, width)
        shapes[f"layers.{i}.1.3.g"] = (4 * width,)
        shapes[f"layers.{i}.1.4.weight"] = (width, 4 * width)
    gains = {
        name for name, shape in shapes.items() if len(shape) == 1 and not name.endswith("bias")
    }
    return [
        Idle(f"attn_pool.{name}", np.full(shape, float(name in gains), np.float32))
        for name, shape in shapes.items()
    ]


def _resnet_block(ours: str, theirs: str) -> Iterator[Link]:
    yield from _block(f"{ours}.block1", f"{theirs}.block1")
    yield from _block(f"{ours}.block2", f"{theirs}.block2")
    yield from dense(f"{ours}.time", f"{theirs}.time_mlp.1")
    yield from _attention(f"{ours}.cross_attention", f"{theirs}.cross_attn")
    for name, convolution in (("position", "to_k"), ("hidden", "net.0"), ("gate", "net.2")):
        yield from _pointwise(f"{ours}.context_gate.{name}", f"{theirs}.gca.{convolution}")
    yield from _pointwise(f"{ours}.residual", f"{theirs}.res_conv")


def _block(ours: str, theirs: str) -> Iterator[Link]:
    yield from layer_norm(f"{ours}.norm", f"{theirs}.groupnorm")
    yield from _convolution(f"{ours}.conv", f"{theirs}.project")


def _attention(ours: str, theirs: str) -> Iterator[Link]:
    """Cross attention, or self attention with its optional tokens."""
    yield _gain(f"{ours}.norm", f"{theirs}.norm")
    yield link(f"{ours}.null.key_value", f"{theirs}.null_kv")
    yield from dense(f"{ours}.query", f"{theirs}.to_q")
    yield from _key_value(ours, "", f"{theirs}.to_kv")
    yield from dense(f"{ours}.out", f"{theirs}.to_out.0")
    yield _gain(f"{ours}.out_norm", f"{theirs}.to_out.1")
    yield from _context(ours, theirs)


def _linear_attention(ours: str, theirs: str) -> Iterator[Link]:
    yield _map_gain(f"{ours}.norm", f"{theirs}.norm")
    for name in ("query", "key", "value"):
        yield from _pointwise(f"{ours}.{name}", f"{theirs}.to_{name[0]}.1")
        yield from _convolution(f"{ours}.{name}_local", f"{theirs}.to_{name[0]}.2")
    yield from _pointwise(f"{ours}.out", f"{theirs}.to_out.0")
    yield _map_gain(f"{ours}.out_norm", f"{theirs}.to_out.1")
    yield from _context(ours, theirs)


def _context(ours: str, theirs: str) -> Iterator[Link]:
    yield from layer_norm(f"{ours}.context_norm", f"{theirs}.to_context.0")
    yield from _key_value(ours, "context_", f"{theirs}.to_context.1")


def _map_transformer(ours: str, theirs: str, depth: int, linear: bool) -> Iterator[Link]:
    attention = _linear_attention if linear else _attention
    for i in range(depth):
        yield from attention(f"{ours}.attention_{i}", f"{theirs}.layers.{i}.0")
        yield from _feed_forward(f"{ours}.feed_forward_{i}", f"{theirs}.layers.{i}.1", linear)


def _feed_forward(ours: str, theirs: str, on_map: bool = False) -> Iterator[Link]:
    gain, linear = (_map_gain, _pointwise) if on_map else (_gain, dense)
    yield gain(f"{ours}.norm", f"{theirs}.0")
    yield from linear(f"{ours}.wide", f"{theirs}.1")
    yield gain(f"{ours}.wide_norm", f"{theirs}.3")
    yield from linear(f"{ours}.out", f"{theirs}.4")


def _downsample(config: UNetConfig, level: int) -> Iterator[Link]:
    ours = f"params.down_{level}_resize"
    theirs = f"downs.{level}.{0 if config.memory_efficient else 4}"
    if not config.memory_efficient and level == len(config.dim_mults) - 1:
        yield from _convolution(f"{ours}.conv3", f"{theirs}.fns.0")
        yield from _pointwise(f"{ours}.conv1", f"{theirs}.fns.1")
    elif config.cross_embed_downsample_kernel_sizes is not None:
        width = config.dim * config.dim_mults[level]
        yield from _embedding(ours, theirs, width, config.cross_embed_downsample_kernel_sizes)
    else:
        pattern = "o (i r s) 1 1 -> r s i o"
        yield link(f"{ours}.kernel", f"{theirs}.1.weight", pattern, r=2, s=2)
        yield link(f"{ours}.bias", f"{theirs}.1.bias")


def _upsample(ours: str, theirs: str, config: UNetConfig) -> Iterator[Link]:
    if not config.pixel_shuffle_upsample:
        yield from _convolution(ours, f"{theirs}.1")
        return
    kernel, bias = f"{theirs}.net.0.weight", f"{theirs}.net.0.bias"
    yield link(f"{ours}.kernel", kernel, "(o r s) i 1 1 -> i (r s o)", r=2, s=2)
    yield link(f"{ours}.bias", bias, "(o r s) -> (r s o)", r=2, s=2)


def _embedding(
    ours: str, theirs: str, width: int, kernel_sizes: tuple[int, ...] | None
) -> Iterator[Link]:
    """One convolution, or parallel ones that share the channels."""
    if kernel_sizes is None:
        yield from _convolution(ours, theirs)
        return
    count = len(kernel_sizes)
    for i, size in enumerate(sorted(kernel_sizes)):
        yield link(f"{ours}.kernel_{size}", f"{theirs}.convs.{i}.weight", CONVOLUTION)
    widths = [width // 2 ** (i + 1) for i in range(count - 1)]
    biases = tuple(f"{theirs}.convs.{i}.bias" for i in range(count))
    yield link(f"{ours}.bias", biases)._replace(lengths=(*widths, width - sum(widths)))


def _convolution(ours: str, theirs: str) -> Iterator[Link]:
    yield link(f"{ours}.kernel", f"{theirs}.weight", CONVOLUTION)
    yield link(f"{ours}.bias", f"{theirs}.bias")


def _pointwise(ours: str, theirs: str) -> Iterator[Link]:
    """A 1x1 convolution."""
    yield link(f"{ours}.kernel", f"{theirs}.weight", POINTWISE)
    yield link(f"{ours}.bias", f"{theirs}.bias")


def _key_value(ours: str, name: str, theirs: str) -> Iterator[Link]:
    """Keys and values, which are the halves of one linear map in the reference."""
    key, value = f"{ours}.{name}key", f"{ours}.{name}value"
    yield link((f"{key}.kernel", f"{value}.kernel"), f"{theirs}.weight", LINEAR_HALVES, part=2)
    yield link((f"{key}.bias", f"{value}.bias"), f"{theirs}.bias", "(part d) -> part d", part=2)


def _gain(ours: str, theirs: str) -> Link:
    return link(f"{ours}.scale", f"{theirs}.g")


def _map_gain(ours: str, theirs: str) -> Link:
    return link(f"{ours}.scale", f"{theirs}.g", "d 1 1 -> d")

"""Published super-resolution U-Net weights -> configuration and variables.

1x1 convolutions become linear maps. Three layers are laid out anew: parallel convolutions are the
kernels of one `CrossEmbed`, space-to-depth with its 1x1 convolution is a 2x2 convolution of
stride 2, and the channels before a pixel shuffle are ordered (row, column, channel).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import traverse_util

from gct_jax.config import UNetConfig, module_fields
from gct_jax.errors import ModelFolderError
from gct_jax.interop.generatect.transformer import Params, State, dense, layer_norm, tensor
from gct_jax.interop.generatect.unet_config import infer_config
from gct_jax.models.unet import UNet


def unet_from_reference(state: State, **not_inferable: Any) -> tuple[UNetConfig, Params]:
    """Convert the state dict of one reference U-Net.

    Args:
      state: arrays by name, without the prefix `unets.1.` of a `Superres` state dict, or
        `1.ema_model.` of a trainer checkpoint's entry `ema`.
      **not_inferable: fields of `UNetConfig` that leave no trace in names and shapes, where they
        differ from the published ones: `resnet_groups`, `cosine_sim_attn`,
        `use_linear_cross_attn`, `scale_skip_connection`, `self_cond`, `cond_images_channels`, and
        `attn_dim_head` where no level has attention.

    Returns:
      the configuration and {"params": ..} for `gct_jax.models.unet.UNet`.

    Raises:
      ModelFolderError: a tensor is missing, unknown or of a contradictory shape.
    """
    config = infer_config(state, **not_inferable)
    recorder = _Recorder(state)
    params = _unet(recorder, config)
    # Without text the reference keeps these, but nothing reads them.
    idle = () if config.text_embed_dim is not None else ("null_text_", "attn_pool.")
    unused = sorted(name for name in set(state) - recorder.used if not name.startswith(idle))
    if unused:
        raise ModelFolderError(
            f"the weights hold {len(unused)} unexpected tensor(s), first {unused[0]!r}"
        )
    _require_fit(params, config)
    return config, {"params": params}


class _Recorder(Mapping):
    """A state dict that remembers which of its tensors were asked for."""

    def __init__(self, state: State):
        self.state = state
        self.used: set[str] = set()

    def __getitem__(self, name: str) -> np.ndarray:
        self.used.add(name)
        return self.state[name]

    def __contains__(self, name: object) -> bool:
        return name in self.state

    def __iter__(self) -> Iterator[str]:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)


def _require_fit(params: Params, config: UNetConfig) -> None:
    """Compare names and shapes with those of a freshly initialised model, without computing it."""
    side = 2 ** len(config.dim_mults)
    image = jnp.zeros((1, side, side, config.channels))
    inputs: dict[str, Any] = {}
    if config.lowres_cond:
        inputs |= {"low_res": image, "low_res_log_snr": jnp.zeros(1)}
    if config.text_embed_dim is not None:
        inputs["text"] = jnp.zeros((1, 1, config.text_embed_dim))
    if config.cond_images_channels:
        inputs["cond_images"] = jnp.zeros((1, side, side, config.cond_images_channels))
    model = UNet(**module_fields(config))
    expected = jax.eval_shape(
        lambda: model.init(jax.random.key(0), image, jnp.zeros(1), **inputs)["params"]
    )
    wanted, given = (
        {name: leaf.shape for name, leaf in traverse_util.flatten_dict(tree, sep=".").items()}
        for tree in (expected, params)
    )
    for name in sorted(wanted | given):
        if wanted.get(name) != given.get(name):
            raise ModelFolderError(
                f"parameter {name!r}: the weights give shape {given.get(name, 'nothing')}, the "
                f"options found in them ask for {wanted.get(name, 'nothing')}"
            )


def _unet(state: State, config: UNetConfig) -> Params:
    levels = len(config.dim_mults)
    params = {
        "conditioning": _conditioning(state, config),
        "initial_conv": _cross_embed_or_conv(state, "init_conv"),
        "middle_block1": _resnet_block(state, "mid_block1"),
        "middle_block2": _resnet_block(state, "mid_block2"),
        "final_conv": _conv(state, "final_conv"),
    }
    if config.memory_efficient:
        params["initial_block"] = _resnet_block(state, "init_resnet_block")
    if config.attend_at_middle:
        params["middle_attention"] = _map_transformer(state, "mid_attn", 1)
    if config.final_resnet_block:
        params["final_block"] = _resnet_block(state, "final_res_block")
    for level in range(levels):
        up = levels - 1 - level
        params |= _level(state, config, level, f"down_{level}", f"downs.{level}", 1)
        params |= _level(state, config, level, f"up_{level}", f"ups.{up}", 0)
        params[f"down_{level}_resize"] = _downsample(state, config, level)
        if level > 0 or config.memory_efficient:
            params[f"up_{level}_resize"] = _upsample(state, config, f"ups.{up}.3")
        if config.combine_upsample_fmaps:
            params[f"combine_{level}"] = _block(state, f"upsample_combiner.fmap_convs.{level}")
    return params


def _level(
    state: State, config: UNetConfig, level: int, name: str, prefix: str, first: int
) -> Params:
    """One level in one direction; its modules are numbered from `first` in the reference."""
    params = {f"{name}_cross_block": _resnet_block(state, f"{prefix}.{first}")}
    for i in range(config.num_resnet_blocks[level]):
        params[f"{name}_block_{i}"] = _resnet_block(state, f"{prefix}.{first + 1}.{i}")
    if config.layer_attns[level] != "none":
        depth = config.layer_attns_depth[level]
        params[f"{name}_attention"] = _map_transformer(state, f"{prefix}.{first + 2}", depth)
    return params


def _conditioning(state: State, config: UNetConfig) -> Params:
    params = {"noise_level": _noise_level(state, "time"), "norm": layer_norm(state, "norm_cond")}
    if config.lowres_cond:
        params["low_res_noise_level"] = _noise_level(state, "lowres_time")
    if config.text_embed_dim is None:
        return params
    text = {
        "null_tokens": tensor(state, "null_text_embed")[0],
        "null_vector": tensor(state, "null_text_hidden")[0],
        "text": dense(state, "text_to_cond"),
        "vector_norm": layer_norm(state, "to_text_non_attn_cond.0"),
        "vector_hidden": dense(state, "to_text_non_attn_cond.1"),
        "vector": dense(state, "to_text_non_attn_cond.3"),
    }
    if config.attn_pool_text:
        text["pool"] = _attention_pool(state, "attn_pool")
    return params | {"text": text}


def _noise_level(state: State, name: str) -> Params:
    return {
        "frequencies": tensor(state, f"to_{name}_hiddens.0.weights"),
        "hidden": dense(state, f"to_{name}_hiddens.1"),
        "vector": dense(state, f"to_{name}_cond.0"),
        "tokens": dense(state, f"to_{name}_tokens.0"),
    }


def _attention_pool(state: State, prefix: str) -> Params:
    params: Params = {
        "positions": tensor(state, f"{prefix}.pos_emb.weight"),
        "latents": tensor(state, f"{prefix}.latents"),
        "mean_norm": _gain(state, f"{prefix}.to_latents_from_mean_pooled_seq.0"),
        "mean_latents": dense(state, f"{prefix}.to_latents_from_mean_pooled_seq.1"),
    }
    for i in range(2):
        layer = f"{prefix}.layers.{i}"
        params[f"attention_{i}"] = {
            "norm": layer_norm(state, f"{layer}.0.norm"),
            "latents_norm": layer_norm(state, f"{layer}.0.norm_latents"),
            "query": _pointwise(state, f"{layer}.0.to_q"),
            **_key_value(state, f"{layer}.0.to_kv", ""),
            "out": _pointwise(state, f"{layer}.0.to_out.0"),
            "out_norm": layer_norm(state, f"{layer}.0.to_out.1"),
        }
        params[f"feed_forward_{i}"] = _feed_forward(state, f"{layer}.1")
    return params


def _resnet_block(state: State, prefix: str) -> Params:
    params = {
        "block1": _block(state, f"{prefix}.block1"),
        "block2": _block(state, f"{prefix}.block2"),
        "time": dense(state, f"{prefix}.time_mlp.1"),
    }
    if f"{prefix}.cross_attn.to_q.weight" in state:
        params["cross_attention"] = _attention(state, f"{prefix}.cross_attn")
    if f"{prefix}.gca.to_k.weight" in state:
        params["context_gate"] = {
            "position": _pointwise(state, f"{prefix}.gca.to_k"),
            "hidden": _pointwise(state, f"{prefix}.gca.net.0"),
            "gate": _pointwise(state, f"{prefix}.gca.net.2"),
        }
    if f"{prefix}.res_conv.weight" in state:
        params["residual"] = _pointwise(state, f"{prefix}.res_conv")
    return params


def _block(state: State, prefix: str) -> Params:
    norm = layer_norm(state, f"{prefix}.groupnorm")
    return {"norm": norm, "conv": _conv(state, f"{prefix}.project")}


def _attention(state: State, prefix: str) -> Params:
    """Cross attention, or self attention with its optional tokens."""
    params = {
        "norm": _gain(state, f"{prefix}.norm"),
        "null": {"key_value": tensor(state, f"{prefix}.null_kv")},
        "query": _pointwise(state, f"{prefix}.to_q"),
        **_key_value(state, f"{prefix}.to_kv", ""),
        "out": _pointwise(state, f"{prefix}.to_out.0"),
        "out_norm": _gain(state, f"{prefix}.to_out.1"),
    }
    return params | _context(state, prefix)


def _linear_attention(state: State, prefix: str) -> Params:
    params = {
        "norm": _gain(state, f"{prefix}.norm"),
        "out": _pointwise(state, f"{prefix}.to_out.0"),
        "out_norm": _gain(state, f"{prefix}.to_out.1"),
    }
    for name in ("query", "key", "value"):
        params[name] = _pointwise(state, f"{prefix}.to_{name[0]}.1")
        params[f"{name}_local"] = _conv(state, f"{prefix}.to_{name[0]}.2")
    return params | _context(state, prefix)


def _context(state: State, prefix: str) -> Params:
    if f"{prefix}.to_context.1.weight" not in state:
        return {}
    norm = layer_norm(state, f"{prefix}.to_context.0")
    return {"context_norm": norm, **_key_value(state, f"{prefix}.to_context.1", "context_")}


def _map_transformer(state: State, prefix: str, depth: int) -> Params:
    params = {}
    for i in range(depth):
        layer = f"{prefix}.layers.{i}"
        linear = f"{layer}.0.to_q.1.weight" in state
        convert = _linear_attention if linear else _attention
        params[f"attention_{i}"] = convert(state, f"{layer}.0")
        params[f"feed_forward_{i}"] = _feed_forward(state, f"{layer}.1")
    return params


def _feed_forward(state: State, prefix: str) -> Params:
    return {
        "norm": _gain(state, f"{prefix}.0"),
        "wide": _pointwise(state, f"{prefix}.1"),
        "wide_norm": _gain(state, f"{prefix}.3"),
        "out": _pointwise(state, f"{prefix}.4"),
    }


def _downsample(state: State, config: UNetConfig, level: int) -> Params:
    prefix = f"downs.{level}.{0 if config.memory_efficient else 4}"
    if f"{prefix}.fns.0.weight" in state:
        return {
            "conv3": _conv(state, f"{prefix}.fns.0"),
            "conv1": _pointwise(state, f"{prefix}.fns.1"),
        }
    if config.cross_embed_downsample_kernel_sizes is not None:
        return _cross_embed_or_conv(state, prefix)
    kernel = tensor(state, f"{prefix}.1.weight")[:, :, 0, 0]
    return {
        "kernel": rearrange(kernel, "o (i r s) -> r s i o", r=2, s=2),
        "bias": tensor(state, f"{prefix}.1.bias"),
    }


def _upsample(state: State, config: UNetConfig, prefix: str) -> Params:
    if not config.pixel_shuffle_upsample:
        return {"conv": _conv(state, f"{prefix}.1")}
    kernel = tensor(state, f"{prefix}.net.0.weight")[:, :, 0, 0]
    bias = tensor(state, f"{prefix}.net.0.bias")
    return {
        "conv": {
            "kernel": rearrange(kernel, "(o r s) i -> i (r s o)", r=2, s=2),
            "bias": rearrange(bias, "(o r s) -> (r s o)", r=2, s=2),
        }
    }


def _cross_embed_or_conv(state: State, prefix: str) -> Params:
    if f"{prefix}.weight" in state:
        return _conv(state, prefix)
    count = len({name for name in state if name.startswith(f"{prefix}.convs.")}) // 2
    convs = [_conv(state, f"{prefix}.convs.{i}") for i in range(count)]
    params = {f"kernel_{conv['kernel'].shape[0]}": conv["kernel"] for conv in convs}
    return params | {"bias": np.concatenate([conv["bias"] for conv in convs])}


def _conv(state: State, prefix: str) -> Params:
    params = {"kernel": rearrange(tensor(state, f"{prefix}.weight"), "o i h w -> h w i o")}
    if f"{prefix}.bias" in state:
        params["bias"] = tensor(state, f"{prefix}.bias")
    return params


def _pointwise(state: State, prefix: str) -> Params:
    """Linear map or 1x1 convolution, with or without bias."""
    weight = tensor(state, f"{prefix}.weight")
    params = {"kernel": weight.reshape(weight.shape[:2]).T}
    if f"{prefix}.bias" in state:
        params["bias"] = tensor(state, f"{prefix}.bias")
    return params


def _key_value(state: State, prefix: str, name: str) -> Params:
    """Keys and values, which are the halves of one linear map in the reference."""
    both = _pointwise(state, prefix)
    halves = {leaf: np.split(array, 2, axis=-1) for leaf, array in both.items()}
    return {
        f"{name}key": {leaf: half[0] for leaf, half in halves.items()},
        f"{name}value": {leaf: half[1] for leaf, half in halves.items()},
    }


def _gain(state: State, prefix: str) -> Params:
    return {"scale": tensor(state, f"{prefix}.g").reshape(-1)}

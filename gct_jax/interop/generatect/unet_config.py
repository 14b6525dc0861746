"""What the names and shapes of a reference U-Net's tensors say about its options."""

import dataclasses
from collections.abc import Collection
from typing import Any

from gct_jax.config import UNetConfig
from gct_jax.errors import ModelFolderError
from gct_jax.interop.generatect.layout import State, count_indices, sizes
from gct_jax.ranges import Checked, number


@dataclasses.dataclass(frozen=True)
class NotInferable(Checked):
    """Fields of `UNetConfig` that leave no trace in names and shapes, and what is assumed.

    `attn_dim_head` is assumed only where no level has softmax attention; `resnet_groups` None means
    8 groups at every level; `use_linear_cross_attn` is one value or one per level.
    """

    attn_dim_head: int = number(64, least=1)
    cond_images_channels: int = number(0, least=0)
    cosine_sim_attn: bool = False
    resnet_groups: tuple[int, ...] | None = number(None, least=1)
    scale_skip_connection: bool = True
    self_cond: bool = False
    use_linear_cross_attn: bool | tuple[bool, ...] = False


def assumptions(state: State, config: UNetConfig, given: Collection[str]) -> dict[str, Any]:
    """Fields that decide the numbers of this U-Net, that its weights do not tell and that were not
    `given`, with the values that were assumed."""
    attends = any(name.endswith((".to_q.weight", ".to_q.1.weight")) for name in state)
    softmax = any(kind == "full" for kind in config.layer_attns) or config.attend_at_middle
    crosses = any(config.layer_cross_attns)
    decide = {
        "attn_dim_head": not _null_pairs(state) and (attends or "attn_pool.latents" in state),
        "cond_images_channels": True,
        "cosine_sim_attn": softmax or crosses or config.attn_pool_text,
        "resnet_groups": True,
        "scale_skip_connection": True,
        "self_cond": True,
        "use_linear_cross_attn": crosses,
    }
    return {
        name: getattr(config, name)
        for name, decides in decide.items()
        if decides and name not in given
    }


def infer_config(state: State, **not_inferable: Any) -> UNetConfig:
    """`UNetConfig` of a state dict; `not_inferable` is explained at `unet_from_reference`.

    Raises:
      ModelFolderError: a tensor that every such U-Net has is missing.
      ConfigError: the tensors contradict each other.
    """
    levels = count_indices(state, "downs.")
    lowres = "to_lowres_time_cond.0.weight" in state
    time_width = sizes(state, "to_time_cond.0.weight", 2)[0]
    dim = time_width // (8 if lowres else 4)
    token_dim = sizes(state, "norm_cond.weight", 1)[0]
    if not (dim and token_dim and levels):
        raise ModelFolderError(
            f"no U-Net has {levels} level(s), a width of {dim} and tokens of {token_dim} numbers"
        )
    # Levels of the way up are counted from the innermost one.
    ups = [f"ups.{levels - 1 - level}." for level in range(levels)]
    widths = [sizes(state, f"{up}0.block2.groupnorm.weight", 1)[0] for up in ups]
    efficient = "init_resnet_block.block1.project.weight" in state
    text = "text_to_cond.weight" in state
    pooled = "attn_pool.latents" in state
    options: dict[str, Any] = {
        "dim": dim,
        "cond_dim": None if token_dim == dim else token_dim,
        "channels_out": sizes(state, "final_conv.weight", 4)[0],
        "dim_mults": tuple(width // dim for width in widths),
        "num_resnet_blocks": tuple(
            count_indices(state, f"downs.{level}.2.") for level in range(levels)
        ),
        "layer_attns": tuple(_attention_kind(state, f"{up}2.layers.0.0") for up in ups),
        "layer_attns_depth": tuple(max(1, count_indices(state, f"{up}2.layers.")) for up in ups),
        "layer_cross_attns": tuple(f"{up}0.cross_attn.null_kv" in state for up in ups),
        "attend_at_middle": "mid_attn.layers.0.0.null_kv" in state,
        "layer_mid_attns_depth": max(1, count_indices(state, "mid_attn.layers.")),
        "lowres_cond": lowres,
        "text_embed_dim": sizes(state, "text_to_cond.weight", 2)[1] if text else None,
        "max_text_len": sizes(state, "null_text_embed", 3)[1],
        "attn_pool_text": pooled,
        "num_time_tokens": sizes(state, "to_time_tokens.0.weight", 2)[0] // token_dim,
        "learned_sinu_pos_emb_dim": 2 * sizes(state, "to_time_hiddens.0.weights", 1)[0],
        "memory_efficient": efficient,
        "pixel_shuffle_upsample": any(".3.net.0." in name for name in state),
        "combine_upsample_fmaps": "upsample_combiner.fmap_convs.0.project.weight" in state,
        "use_global_context_attn": any(
            ".gca." in name and not name.startswith("final_res_block") for name in state
        ),
        "final_resnet_block": "final_res_block.block1.project.weight" in state,
        "resnet_groups": (8,) * levels,
        **_convolutions(state, dim, efficient),
        **_attention_size(state, not_inferable.get("attn_dim_head", 64)),
    }
    if pooled:
        options["attn_pool_num_latents"] = sizes(state, "attn_pool.latents", 2)[0]
    feed_forward = next(
        (name for name in state if name.startswith("ups.") and ".layers.0.1.1." in name), None
    )
    if feed_forward is not None:
        wide, narrow = state[feed_forward].shape[:2]
        options["ff_mult"] = wide / narrow
    options |= not_inferable
    parts = 1 + lowres + options.get("self_cond", False)
    given = options.pop("input_channels")
    inputs = given - options.get("cond_images_channels", 0)
    if inputs < parts or inputs % parts:
        raise ModelFolderError(
            f"the first convolution reads {given} channels, which are not {parts} image(s) and "
            f"{options.get('cond_images_channels', 0)} condition channel(s); state "
            "--set superres.cond_images_channels=N or --set superres.self_cond=True"
        )
    options["channels"] = inputs // parts
    options["init_conv_to_final_conv_residual"] = _has_initial_residual(state, options, widths)
    return UNetConfig(**options)


def _attention_kind(state: State, prefix: str) -> str:
    if f"{prefix}.to_q.weight" in state:
        return "full"
    return "linear" if f"{prefix}.to_q.1.weight" in state else "none"


def _convolutions(state: State, dim: int, efficient: bool) -> dict[str, Any]:
    """Kernel sizes and widths of the initial and the down-sampling convolutions."""
    initial = _parallel_shapes(state, "init_conv")
    first = initial or [sizes(state, "init_conv.weight", 4)]
    init_dim = sum(width for width, *_ in first)
    down = _parallel_shapes(state, f"downs.0.{0 if efficient else 4}")
    return {
        "input_channels": first[0][1],
        "init_dim": None if init_dim == dim else init_dim,
        "init_cross_embed_kernel_sizes": _kernel_sizes(initial),
        **({} if initial else {"init_conv_kernel_size": first[0][2]}),
        "cross_embed_downsample_kernel_sizes": _kernel_sizes(down),
    }


def _parallel_shapes(state: State, prefix: str) -> list[tuple[int, ...]]:
    count = count_indices(state, f"{prefix}.convs.")
    return [sizes(state, f"{prefix}.convs.{i}.weight", 4) for i in range(count)]


def _kernel_sizes(shapes: list[tuple[int, ...]]) -> tuple[int, ...] | None:
    return tuple(shape[2] for shape in shapes) or None


def _attention_size(state: State, default_dim_head: int) -> dict[str, int]:
    """Heads and their width; only their product is known where no level has softmax attention."""
    nulls = _null_pairs(state)
    dim_head = sizes(state, nulls[0], 2)[1] if nulls else default_dim_head
    query = (".to_q.weight", ".to_q.1.weight")
    inner = [
        state[name].shape[0]
        for name in state
        if name.endswith(query) and not name.startswith("mid_bl")
    ]
    if inner and inner[0] % dim_head:
        raise ModelFolderError(
            f"attn_dim_head = {dim_head} does not divide the {inner[0]} channels of the attention; "
            "state it with --set superres.attn_dim_head=N"
        )
    middle_query = sizes(state, "mid_block1.cross_attn.to_q.weight", 2)[0]
    middle_dim_head = sizes(state, "mid_block1.cross_attn.null_kv", 2)[1]
    return {
        "attn_heads": inner[0] // dim_head if inner else 8,
        "attn_dim_head": dim_head,
        "mid_cross_attn_heads": middle_query // middle_dim_head,
        "mid_cross_attn_dim_head": middle_dim_head,
    }


def _null_pairs(state: State) -> list[str]:
    """The null keys and values whose width tells that of a head; the middle's has its own."""
    return [name for name in state if name.endswith("null_kv") and not name.startswith("mid_bl")]


def _has_initial_residual(state: State, options: dict[str, Any], widths: list[int]) -> bool:
    """Whether the last layers are wider by the initial convolution's output than they need be."""
    init_dim = options["init_dim"] or options["dim"]
    needed = init_dim if options["memory_efficient"] else widths[0]
    if options["combine_upsample_fmaps"]:
        needed += options["dim"] * len(widths)
    if options["final_resnet_block"]:
        return sizes(state, "final_res_block.block1.groupnorm.weight", 1)[0] > needed
    given = sizes(state, "final_conv.weight", 4)[1]
    return given - options["channels"] * options["lowres_cond"] > needed

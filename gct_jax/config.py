"""Frozen dataclasses that describe a model and a training run.

Field names equal the attribute names of the Flax modules they build, so that
`CTViT(**module_fields(config.ctvit))` is all it takes; modules never see a config object.
"""

import ast
import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from gct_jax.errors import ConfigError

T = TypeVar("T")

SUPERRES_SOLVERS = ("ancestral", "dpm++", "sde-dpm++")  # see gct_jax.sampling.diffusion_solvers
NOT_A_MODULE_FIELD = {"module": False}


def require_choice(name: str, value: object, choices: tuple) -> None:
    """Raise ConfigError unless `value` is one of `choices`."""
    if value not in choices:
        raise ConfigError(f"{name} = {value!r} is not one of {', '.join(map(repr, choices))}")


def require_positive(config: Any, *names: str) -> None:
    """Raise ConfigError unless every named field is above zero."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
            where = f"{type(config).__name__}.{name}"
            raise ConfigError(f"{where} = {value!r} must be a number above 0")


@dataclasses.dataclass(frozen=True)
class VolumeConfig:
    """Geometry of the low-resolution volume that CT-ViT reads and writes."""

    slices: int = 201
    image_size: int = 128
    slice_spacing_mm: float = 1.5
    pixel_spacing_mm: float = 3.0


@dataclasses.dataclass(frozen=True)
class CTViTConfig:
    """CT-ViT: see `gct_jax.models.ctvit.CTViT`. The last three options are named quirks:
    published weights need "bidirectional", "interleaved" and "both" (reference Q3, Q1, 3.1)."""

    channels: int = 1
    dim: int = 512
    codebook_size: int = 8192
    patch_size: int = 16
    temporal_patch_size: int = 2
    spatial_depth: int = 4
    temporal_depth: int = 4
    heads: int = 8
    dim_head: int = 32
    temporal_attention: str = "causal"
    temporal_peg: str = "grid"
    patch_norm: str = "output"

    def __post_init__(self):
        require_choice("temporal_attention", self.temporal_attention, ("causal", "bidirectional"))
        require_choice("patch_norm", self.patch_norm, ("output", "both"))
        require_choice("temporal_peg", self.temporal_peg, ("grid", "interleaved"))
        require_positive(
            self,
            "channels",
            "dim",
            "codebook_size",
            "patch_size",
            "temporal_patch_size",
            "spatial_depth",
            "temporal_depth",
            "heads",
            "dim_head",
        )


@dataclasses.dataclass(frozen=True)
class MaskGitConfig:
    """MaskGIT and its critics: see `gct_jax.models.maskgit.MaskGit` and
    `gct_jax.models.critics.TokenCritic`. `context_dim` None: no text conditioning."""

    num_tokens: int = 8192
    max_sequence_length: int = 10000
    dim: int = 512
    context_dim: int | None = 768
    depth: int = 6
    heads: int = 8
    dim_head: int = 64

    def __post_init__(self):
        optional = {"context_dim"} if self.context_dim is None else set()
        names = {field.name for field in dataclasses.fields(self)}
        require_positive(self, *sorted(names - optional))


@dataclasses.dataclass(frozen=True)
class T5Config:
    """T5 1.1 encoder: see `gct_jax.models.t5.T5Encoder`. `max_length` counts tokens with EOS."""

    vocab_size: int = 32128
    dim: int = 768
    depth: int = 12
    heads: int = 12
    dim_head: int = 64
    mlp_dim: int = 2048
    max_length: int = dataclasses.field(default=256, metadata=NOT_A_MODULE_FIELD)

    def __post_init__(self):
        require_positive(self, *(field.name for field in dataclasses.fields(self)))


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Super-resolution U-Net: see `gct_jax.models.unet.UNet`.

    Tuples named after layers, `num_resnet_blocks` and `resnet_groups` have one entry per level,
    i.e. per entry of `dim_mults`. `layer_attns` entries are "none", "full" or "linear" self
    attention. The middle blocks have their own attention size because published weights have
    8 heads of 64 there whatever `attn_heads` and `attn_dim_head` say (reference Q29).
    `init_cross_embed_kernel_sizes` None means one 7x7 convolution, and
    `cross_embed_downsample_kernel_sizes` None space-to-depth. `text_embed_dim` None: no text.
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
    use_linear_cross_attn: bool = False
    attend_at_middle: bool = False
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
    cross_embed_downsample_kernel_sizes: tuple[int, ...] | None = None
    memory_efficient: bool = True
    pixel_shuffle_upsample: bool = True
    combine_upsample_fmaps: bool = False
    init_conv_to_final_conv_residual: bool = False
    use_global_context_attn: bool = True
    final_resnet_block: bool = True
    scale_skip_connection: bool = True
    resnet_groups: tuple[int, ...] = (8, 8, 8)

    def __post_init__(self):
        require_positive(
            self,
            "dim",
            "channels",
            "attn_heads",
            "attn_dim_head",
            "max_text_len",
            "mid_cross_attn_heads",
            "mid_cross_attn_dim_head",
            "num_time_tokens",
        )
        levels = len(self.dim_mults)
        for name in (
            "num_resnet_blocks",
            "layer_attns",
            "layer_attns_depth",
            "layer_cross_attns",
            "resnet_groups",
        ):
            entries = getattr(self, name)
            if len(entries) != levels:
                raise ConfigError(
                    f"UNetConfig.{name} has {len(entries)} entries, but dim_mults has {levels}"
                )
        for kind in self.layer_attns:
            require_choice("UNetConfig.layer_attns", kind, ("none", "full", "linear"))
        widths = [self.init_dim or self.dim, *(self.dim * mult for mult in self.dim_mults)]
        groups = [self.resnet_groups[0], *self.resnet_groups]
        for width, group in zip(widths, groups, strict=True):
            if width % group:
                raise ConfigError(
                    f"UNetConfig.resnet_groups: width {width} is not divisible into {group} groups"
                )


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """Forward process and target size of the super-resolution stage (reference section 7)."""

    image_size: int = 512
    objective: str = "v"
    noise_schedule: str = "cosine"
    low_res_noise_schedule: str = "linear"
    low_res_noise_level: float = 0.1
    p2_loss_weight_gamma: float = 0.5
    p2_loss_weight_k: float = 1.0
    dynamic_thresholding: bool = True
    dynamic_thresholding_percentile: float = 0.95

    def __post_init__(self):
        require_choice("objective", self.objective, ("v", "noise", "x_start"))
        for name in ("noise_schedule", "low_res_noise_schedule"):
            require_choice(name, getattr(self, name), ("cosine", "linear"))


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How `generate` samples unless its options say otherwise.

    superres_solver: see `gct_jax.sampling.diffusion_solvers`.
    superres_noise_depth_mm: depth over which the noise of the super-resolution turns into an
      independent one, see `gct_jax.sampling.superres`; 0 makes it independent in each slice.
    """

    steps: int = 18
    temperature: float = 0.9
    guidance: float = 5.0
    superres_steps: int = 25
    superres_guidance: float = 1.0
    superres_solver: str = "ancestral"
    superres_noise_depth_mm: float = 0.0

    def __post_init__(self):
        require_positive(self, "steps", "superres_steps")
        if self.superres_noise_depth_mm < 0:
            raise ConfigError(
                f"superres_noise_depth_mm = {self.superres_noise_depth_mm} must not be negative"
            )
        require_choice("superres_solver", self.superres_solver, SUPERRES_SOLVERS)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything a model folder's `config.json` records; a part may be absent."""

    name: str = "base"
    description: str = ""
    volume: VolumeConfig = VolumeConfig()
    ctvit: CTViTConfig | None = CTViTConfig()
    maskgit: MaskGitConfig | None = MaskGitConfig()
    t5: T5Config | None = T5Config()
    unet: UNetConfig | None = UNetConfig()
    diffusion: DiffusionConfig | None = DiffusionConfig()
    sampling: SamplingConfig = SamplingConfig()


def module_fields(config: Any) -> dict[str, Any]:
    """Fields of one frozen config as keyword arguments for the module of the same name."""
    return {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.metadata.get("module", True)
    }


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dict of a config dataclass, for JSON."""
    return dataclasses.asdict(config)


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "config") -> T:
    """Build dataclass `cls` from nested plain values.

    Raises:
      ConfigError: an unknown field or a value of another type, named with its path.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} must be an object with fields, got {values!r}")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ConfigError(f"{where}.{unknown[0]} is unknown; fields are: {', '.join(hints)}")
    parsed = {name: _parse(hints[name], value, f"{where}.{name}") for name, value in values.items()}
    try:
        return cls(**parsed)
    except TypeError as error:  # a required field is absent
        raise ConfigError(f"{where}: {error}") from None


def _parse(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        (hint,) = [arg for arg in typing.get_args(hint) if arg is not type(None)]
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where} must be a list, got {value!r}")
        item = typing.get_args(hint)[0]
        return tuple(_parse(item, entry, f"{where}[{i}]") for i, entry in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where} must be of type {hint.__name__}, got {value!r}")
    return value


def override(config: T, assignments: list[str]) -> T:
    """Apply `a.b=value` assignments (values in Python literal form, bare words are strings).

    Raises:
      ConfigError: a malformed assignment, an unknown field or a wrong type.
    """
    values = to_dict(config)
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator:
            raise ConfigError(f"override {assignment!r} is not of the form name=value")
        *parents, leaf = path.strip().split(".")
        node: Any = values
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if not isinstance(node, dict) or leaf not in node:
            raise ConfigError(f"override {path!r}: no such field")
        node[leaf] = literal(text.strip())
    return from_dict(type(config), values)


def literal(text: str) -> Any:
    """Value of a Python literal; any other text is itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text

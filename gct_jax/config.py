"""Frozen dataclasses that describe a model and a training run.

Field names equal the attribute names of the Flax modules they build, so that
`CTViT(**module_fields(config.ctvit))` is all it takes; modules never see a config object.
"""

import ast
import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from gct_jax.errors import ConfigError
from gct_jax.notes import Note, warn
from gct_jax.ranges import Checked, choice, number

T = TypeVar("T")

SUPERRES_SOLVERS = ("ancestral", "dpm++", "sde-dpm++")  # see gct_jax.sampling.diffusion_solvers
SCHEDULES = ("cosine", "linear")
CRITIC_NOISE_SCHEDULES = ("fixed", "decay", "increase")
MOST_STEPS = 100_000
LARGEST_WEIGHT = 1000.0  # of guidance, and the highest temperature
LARGEST_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class VolumeConfig(Checked):
    """Geometry of the low-resolution volume that CT-ViT reads and writes."""

    slices: int = number(201, least=1)
    image_size: int = number(128, least=1)
    slice_spacing_mm: float = number(1.5, above=0)
    pixel_spacing_mm: float = number(3.0, above=0)


@dataclasses.dataclass(frozen=True)
class CodecConfig(Checked):
    """What the cascade knows of a network that turns volumes into tokens and back.

    `kind` is its row in `CODECS`. Slice 0 makes a token frame of its own, every
    further `temporal_patch_size` slices make one more, of patches of `patch_size`: a side, or
    (height, width). Token ids are below `codebook_size`.
    """

    kind: str = choice("ctvit", ("ctvit",), module=False)
    channels: int = number(1, least=1)
    codebook_size: int = number(8192, least=1)
    patch_size: int | tuple[int, int] = number(16, least=1, length=2)
    temporal_patch_size: int = number(2, least=1)


@dataclasses.dataclass(frozen=True)
class CTViTConfig(CodecConfig):
    """CT-ViT: see `gct_jax.models.ctvit.CTViT`.

    The last three options are named quirks: published weights need "bidirectional", "interleaved"
    and "both", see `interop/generatect/DIFFERENCES.md`.
    """

    dim: int = number(512, least=1)
    spatial_depth: int = number(4, least=1)
    temporal_depth: int = number(4, least=1)
    heads: int = number(8, least=1)
    dim_head: int = number(32, least=1)
    temporal_attention: str = choice("causal", ("causal", "bidirectional"))
    temporal_peg: str = choice("grid", ("grid", "interleaved"))
    patch_norm: str = choice("output", ("output", "both"))


class Codec(NamedTuple):
    """A kind of codec: the class that describes it, and its Flax module as "MODULE:CLASS".

    The module has `encode` (volume [batch, depth, height, width, channels] in [-1, 1] -> ids int32
    [batch, t, h, w]), `decode` (the way back), and `__call__`, whose result has a `reconstruction`.
    """

    config: type[CodecConfig]
    module: str


CODECS = {"ctvit": Codec(CTViTConfig, "gct_jax.models.ctvit:CTViT")}


@dataclasses.dataclass(frozen=True)
class MaskGitConfig(Checked):
    """MaskGIT: see `gct_jax.models.maskgit.MaskGit`. `context_dim` None: no text conditioning.
    `ff_dim` None: feed-forward layers of floor(8 dim / 3) hidden units."""

    num_tokens: int = number(8192, least=1)
    max_sequence_length: int = number(10000, least=1)
    dim: int = number(512, least=1)
    context_dim: int | None = number(768, least=1)
    depth: int = number(6, least=1)
    heads: int = number(8, least=1)
    dim_head: int = number(64, least=1)
    ff_dim: int | None = number(None, least=1)


@dataclasses.dataclass(frozen=True)
class CriticConfig(MaskGitConfig):
    """A critic of MaskGIT's tokens, see `gct_jax.models.critics`: `kind` "token" is a network of
    these sizes, "self" a score on the hidden states of the MaskGIT, whose sizes these are then."""

    kind: str = choice("token", ("token", "self"), module=False)


@dataclasses.dataclass(frozen=True)
class T5Config(Checked):
    """T5 1.1 encoder: see `gct_jax.models.t5.T5Encoder`. `max_length` counts tokens with EOS."""

    vocab_size: int = number(32128, least=3)
    dim: int = number(768, least=1)
    depth: int = number(12, least=1)
    heads: int = number(12, least=1)
    dim_head: int = number(64, least=1)
    mlp_dim: int = number(2048, least=1)
    max_length: int = number(256, least=2, module=False)


@dataclasses.dataclass(frozen=True)
class UNetConfig(Checked):
    """Super-resolution U-Net: see `gct_jax.models.unet.UNet`.

    Tuples named after layers, `num_resnet_blocks` and `resnet_groups` have one entry per level,
    i.e. per entry of `dim_mults`. `layer_attns` entries are "none", "full" or "linear" self
    attention. The middle blocks have their own attention size because published weights have
    8 heads of 64 there whatever `attn_heads` and `attn_dim_head` say.
    `use_linear_cross_attn` is one value for all levels, or one per level.
    `init_cross_embed_kernel_sizes` None means one convolution of `init_conv_kernel_size`, and
    `cross_embed_downsample_kernel_sizes` None space-to-depth. `text_embed_dim` None: no text.
    """

    dim: int = number(64, least=1)
    init_dim: int | None = number(None, least=1)
    cond_dim: int | None = number(None, least=1)
    channels: int = number(1, least=1)
    channels_out: int | None = number(None, least=1)
    dim_mults: tuple[int, ...] = number((1, 2, 4), least=1)
    num_resnet_blocks: tuple[int, ...] = number((2, 2, 2), least=0)
    layer_attns: tuple[str, ...] = choice(("none", "none", "none"), ("none", "full", "linear"))
    layer_attns_depth: tuple[int, ...] = number((1, 1, 1), least=1)
    layer_cross_attns: tuple[bool, ...] = (True, True, True)
    use_linear_cross_attn: bool | tuple[bool, ...] = False
    attend_at_middle: bool = False
    layer_mid_attns_depth: int = number(1, least=1)
    attn_heads: int = number(8, least=1)
    attn_dim_head: int = number(64, least=1)
    mid_cross_attn_heads: int = number(8, least=1)
    mid_cross_attn_dim_head: int = number(64, least=1)
    cosine_sim_attn: bool = False
    ff_mult: float = number(2.0, above=0)
    lowres_cond: bool = True
    text_embed_dim: int | None = number(768, least=1)
    max_text_len: int = number(256, least=1)
    attn_pool_text: bool = True
    attn_pool_num_latents: int = number(32, least=1)
    num_time_tokens: int = number(2, least=1)
    learned_sinu_pos_emb_dim: int = number(16, least=2)
    self_cond: bool = False
    cond_images_channels: int = number(0, least=0)
    init_cross_embed_kernel_sizes: tuple[int, ...] | None = number((3, 7, 15), least=1)
    init_conv_kernel_size: int = number(7, least=1)
    cross_embed_downsample_kernel_sizes: tuple[int, ...] | None = number(None, least=1)
    memory_efficient: bool = True
    pixel_shuffle_upsample: bool = True
    combine_upsample_fmaps: bool = False
    init_conv_to_final_conv_residual: bool = False
    use_global_context_attn: bool = True
    final_resnet_block: bool = True
    scale_skip_connection: bool = True
    resnet_groups: tuple[int, ...] = number((8, 8, 8), least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        levels = len(self.dim_mults)
        for name in (
            "num_resnet_blocks",
            "layer_attns",
            "layer_attns_depth",
            "layer_cross_attns",
            "resnet_groups",
            "use_linear_cross_attn",
        ):
            entries = getattr(self, name)
            if not isinstance(entries, bool) and len(entries) != levels:
                raise ConfigError(
                    f"UNetConfig.{name} has {len(entries)} entries, but dim_mults has {levels}"
                )
        widths = [self.init_dim or self.dim, *(self.dim * mult for mult in self.dim_mults)]
        groups = [self.resnet_groups[0], *self.resnet_groups]
        for width, group in zip(widths, groups, strict=True):
            if width % group:
                raise ConfigError(
                    f"UNetConfig.resnet_groups: width {width} is not divisible into {group} groups"
                )


@dataclasses.dataclass(frozen=True)
class DiffusionConfig(Checked):
    """Forward process and target size of the super-resolution stage (GenerateCT, section 3.3).

    process: "continuous" time with a noise schedule and an objective, or "elucidated", noise levels
      and preconditioning of Karras et al. 2022, which has no use for these two and the solver.
    """

    image_size: int = number(512, least=1)
    process: str = choice("continuous", ("continuous", "elucidated"))
    objective: str = choice("v", ("v", "noise", "x_start"))
    noise_schedule: str = choice("cosine", SCHEDULES)
    low_res_noise_schedule: str = choice("linear", SCHEDULES)
    low_res_noise_level: float = number(0.1, least=0, most=1)
    p2_loss_weight_gamma: float = number(0.5, least=0)
    p2_loss_weight_k: float = number(1.0, least=0)
    dynamic_thresholding: bool = True
    dynamic_thresholding_percentile: float = number(0.95, above=0, most=1)


@dataclasses.dataclass(frozen=True)
class SamplingConfig(Checked):
    """How `generate` samples unless its options say otherwise.

    superres_solver: see `gct_jax.sampling.diffusion_solvers`.
    superres_noise_correlation_mm: depth over which the noise of the super-resolution becomes an
      independent one, see `gct_jax.sampling.superres`; 0 makes it independent in each slice.
    critic_noise, critic_noise_schedule: of a model with a critic, see
      `gct_jax.sampling.token_decoding`.
    """

    OLD_NAMES = (("superres_noise_depth_mm", "superres_noise_correlation_mm"),)

    steps: int = number(18, least=1, most=MOST_STEPS)
    temperature: float = number(0.9, least=0, most=LARGEST_WEIGHT)
    guidance: float = number(5.0, least=0, most=LARGEST_WEIGHT)
    superres_steps: int = number(25, least=1, most=MOST_STEPS)
    superres_guidance: float = number(1.0, least=0, most=LARGEST_WEIGHT)
    superres_solver: str = choice("ancestral", SUPERRES_SOLVERS)
    superres_noise_correlation_mm: float = number(0.0, least=0)
    critic_noise: float = number(1.0, least=0)
    critic_noise_schedule: str = choice("decay", CRITIC_NOISE_SCHEDULES)


@dataclasses.dataclass(frozen=True)
class ModelConfig(Checked):
    """Everything a model folder's `config.json` records; a component may be absent."""

    OLD_NAMES = (("unet", "superres"),)

    name: str = "base"
    description: str = ""
    volume: VolumeConfig = VolumeConfig()
    ctvit: CodecConfig | None = CTViTConfig()
    maskgit: MaskGitConfig | None = MaskGitConfig()
    critic: CriticConfig | None = None
    t5: T5Config | None = T5Config()
    superres: UNetConfig | None = UNetConfig()
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


def from_dict(
    cls: type[T], values: Mapping[str, Any], where: str = "config", on_note: Note = warn
) -> T:
    """Build dataclass `cls` from nested plain values; `on_note` is told of fields by old names.

    Raises:
      ConfigError: an unknown field or a value of another type, named with its path.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} must be an object with fields, got {values!r}")
    values = _with_new_names(cls, values, where, on_note)
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ConfigError(f"{where}.{unknown[0]} is unknown; fields are: {', '.join(hints)}")
    parsed = {
        name: _parse(hints[name], value, f"{where}.{name}", on_note)
        for name, value in values.items()
    }
    try:
        return cls(**parsed)
    except TypeError as error:  # a required field is absent
        raise ConfigError(f"{where}: {error}") from None
    except ConfigError as error:
        own_name = f"{cls.__name__}."
        raise ConfigError(str(error).replace(own_name, f"{where}.", 1)) from None


def _with_new_names(
    cls: type, values: Mapping[str, Any], where: str, on_note: Note
) -> Mapping[str, Any]:
    renamed = dict(values)
    for old, new in getattr(cls, "OLD_NAMES", ()):
        if old not in renamed:
            continue
        if new is None:
            value = renamed.pop(old)
            on_note(f"{where}.{old} = {value!r} is an option of earlier versions and is ignored")
        else:
            if new in renamed:
                raise ConfigError(f"{where} has both {new} and {old}, its name of earlier versions")
            renamed[new] = renamed.pop(old)
            on_note(f"{where}.{old} is called {new} now")
    return renamed


def _parse(hint: Any, value: Any, where: str, on_note: Note) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = member(hint, value)
    if hint is CodecConfig and isinstance(value, Mapping):
        kind = value.get("kind", "ctvit")
        if kind not in CODECS:
            raise ConfigError(f"{where}.kind = {kind!r} is none of {', '.join(CODECS)}")
        hint = CODECS[kind].config
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where, on_note)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where} must be a list, got {value!r}")
        item = typing.get_args(hint)[0]
        return tuple(_parse(item, entry, f"{where}[{i}]", on_note) for i, entry in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where} must be of type {hint.__name__}, got {value!r}")
    return value


def member(union: Any, value: Any) -> Any:
    """The type of a union, apart from None, that `value` is to have: a tuple for several values."""
    members = [arg for arg in typing.get_args(union) if arg is not type(None)]
    several = isinstance(value, (list, tuple))
    fitting = [arg for arg in members if (typing.get_origin(arg) is tuple) == several]
    return (fitting or members)[0]


def override(config: T, assignments: list[str], on_note: Note = warn) -> T:
    """Apply `a.b=value` assignments (values in Python literal form, bare words are strings).

    Raises:
      ConfigError: a malformed assignment, an unknown field or a wrong type.
    """
    values = to_dict(config)
    given: dict[tuple[str, ...], str] = {}
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator:
            raise ConfigError(f"override {assignment!r} is not of the form name=value")
        node: Any = values
        described: Any = config
        *parents, leaf = path.strip().split(".")
        for i, parent in enumerate(parents):
            parents[i] = parent = _new_name(described, parent, path, on_note)
            node = node.get(parent) if isinstance(node, dict) else None
            described = getattr(described, parent, None)
        leaf = _new_name(described, leaf, path, on_note)
        if not isinstance(node, dict) or leaf not in node:
            raise ConfigError(f"override {path!r}: no such field")
        full = (*parents, leaf)
        if given.get(full, text.strip()) != text.strip():
            on_note(
                f"override {'.'.join(full)} is given as {given[full]} and as {text.strip()}; "
                "the last counts"
            )
        given[full] = text.strip()
        node[leaf] = literal(text.strip())
    return from_dict(type(config), values, on_note=on_note)


def _new_name(config: Any, name: str, path: str, on_note: Note) -> str:
    new = dict(getattr(config, "OLD_NAMES", ())).get(name)
    if new is None:
        return name
    on_note(f"override {path!r}: {name} is called {new} now")
    return new


def literal(text: str) -> Any:
    """Value of a Python literal; any other text is itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text

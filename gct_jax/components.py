"""The components of a model, built from their configs: one row of `COMPONENTS` each.

A component's name is its field in `ModelConfig` and the name of its weight file. Every weight file
is checked against the structure that `abstract_variables` derives from the module itself.
"""

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from gct_jax.config import CODECS, ModelConfig, UNetConfig, module_fields
from gct_jax.errors import ConfigError, ModelFolderError
from gct_jax.models.token_grid import patch_sides
from gct_jax.random_keys import random_key

Inputs = tuple[tuple[Any, ...], dict[str, Any]]  # positional and by name


class Component(NamedTuple):
    """A row of the table.

    module: "MODULE:CLASS" of the Flax module, imported on demand: a command that only decodes
      tokens need not load the U-Net. Or a function of the configuration that names it.
    example: the smallest inputs through which every parameter is used.
    within: another component that this one contains; its parameters stand under that name, and are
      stored with that component alone.
    """

    module: str | Callable[[ModelConfig], str]
    example: Callable[[ModelConfig], Inputs]
    within: Callable[[ModelConfig], str | None] = lambda config: None


def has_component(config: ModelConfig, component: str) -> bool:
    """Whether the model described by `config` contains `component`."""
    return getattr(config, component) is not None


def require_component(config: ModelConfig, component: str) -> None:
    """Raise ModelFolderError unless the model described by `config` contains `component`."""
    if not has_component(config, component):
        raise ModelFolderError(f"model '{config.name}' has no component '{component}'")


def present_components(config: ModelConfig) -> list[str]:
    """The names of the components that the model described by `config` contains."""
    return [component for component in COMPONENTS if has_component(config, component)]


def build_component(
    config: ModelConfig, component: str, dtype: Any = jnp.float32, **attributes: Any
) -> Any:
    """The Flax module of one component, computing in `dtype`.

    Args:
      attributes: of the module, beside those that the config has.

    Raises:
      ModelFolderError: the model has no such component.
    """
    require_component(config, component)
    row = COMPONENTS[component]
    path = row.module if isinstance(row.module, str) else row.module(config)
    module, _, name = path.partition(":")
    build = cast(type[nn.Module], getattr(importlib.import_module(module), name))
    within = row.within(config)
    if within is not None:
        return build(build_component(config, within, dtype, **attributes))
    return build(**module_fields(getattr(config, component)), dtype=dtype, **attributes)


def init_component(config: ModelConfig, component: str, key: jax.Array) -> dict[str, Any]:
    """Freshly initialised variables of a component."""
    row = COMPONENTS[component]
    arguments, keywords = row.example(config)
    variables: PyTree = build_component(config, component).init(key, *arguments, **keywords)
    own = {name: tree for name, tree in variables["params"].items() if name != row.within(config)}
    return {**variables, "params": own}


def joined_variables(
    config: ModelConfig, component: str, variables: Mapping[str, PyTree]
) -> dict[str, Any]:
    """What `apply` of a component takes: its own variables, with those of a component within.

    Args:
      variables: of all components by name.
    """
    within = COMPONENTS[component].within(config)
    own = variables[component]
    if within is None:
        return own
    return {**own, "params": {**own["params"], within: variables[within]["params"]}}


@functools.lru_cache(maxsize=16)
def abstract_variables(config: ModelConfig, component: str) -> dict[str, Any]:
    """Shapes and types of a component's variables, without computing anything. Not to be changed:
    the same dict is returned again for the same config."""
    return jax.eval_shape(functools.partial(init_component, config, component), random_key(0))


def _codec_inputs(config: ModelConfig) -> Inputs:
    assert config.ctvit is not None  # build_component has looked, here and below
    size = patch_sides(config.ctvit.patch_size)
    slices = 1 + config.ctvit.temporal_patch_size
    return (jnp.zeros((1, slices, *size, config.ctvit.channels)),), {}


def _token_inputs(field: str, config: ModelConfig) -> Inputs:
    context_dim = getattr(config, field).context_dim
    ids = jnp.zeros((1, 1, 1, 1), jnp.int32)
    if context_dim is None:
        return (ids,), {}
    return (ids, jnp.zeros((1, 1, context_dim)), jnp.ones((1, 1), bool)), {}


def _unet_inputs(config: ModelConfig) -> Inputs:
    unet = cast(UNetConfig, config.superres)
    size = 2 ** len(unet.dim_mults)
    image = jnp.zeros((1, size, size, unet.channels))
    keywords: dict[str, Any] = {}
    if unet.lowres_cond:
        keywords |= {"low_res": image, "low_res_log_snr": jnp.zeros(1)}
    if unet.text_embed_dim is not None:
        keywords["text"] = jnp.zeros((1, unet.max_text_len, unet.text_embed_dim))
        keywords["text_mask"] = jnp.ones((1, unet.max_text_len), bool)
    if unet.self_cond:
        keywords["self_cond"] = image
    if unet.cond_images_channels:
        keywords["cond_images"] = jnp.zeros((1, size, size, unet.cond_images_channels))
    return (image, jnp.zeros(1)), keywords


def _codec_module(config: ModelConfig) -> str:
    assert config.ctvit is not None
    return CODECS[config.ctvit.kind].module


def _is_self_critic(config: ModelConfig) -> bool:
    return config.critic is not None and config.critic.kind == "self"


COMPONENTS = {
    "ctvit": Component(_codec_module, _codec_inputs),
    "maskgit": Component(
        "gct_jax.models.maskgit:MaskGit", functools.partial(_token_inputs, "maskgit")
    ),
    "critic": Component(
        lambda config: (
            "gct_jax.models.critics:" + ("SelfCritic" if _is_self_critic(config) else "TokenCritic")
        ),
        functools.partial(_token_inputs, "critic"),
        lambda config: "maskgit" if _is_self_critic(config) else None,
    ),
    "superres": Component("gct_jax.models.unet:UNet", _unet_inputs),
    "t5": Component(
        "gct_jax.models.t5:T5Encoder", lambda config: ((jnp.zeros((1, 1), jnp.int32),), {})
    ),
}


def check_components_fit(config: ModelConfig) -> None:
    """Check the sizes that two components of a model share.

    Raises:
      ConfigError: they differ; the message holds both numbers.
    """
    codec, maskgit, critic, t5 = config.ctvit, config.maskgit, config.critic, config.t5
    unet = config.superres
    if codec:
        if any(config.volume.image_size % side for side in patch_sides(codec.patch_size)):
            raise ConfigError(
                f"volume.image_size = {config.volume.image_size} is no multiple of "
                f"ctvit.patch_size = {codec.patch_size}"
            )
        if (config.volume.slices - 1) % codec.temporal_patch_size:
            raise ConfigError(
                f"volume.slices = {config.volume.slices} is not 1 plus a multiple of "
                f"ctvit.temporal_patch_size = {codec.temporal_patch_size}"
            )
    if codec and maskgit:
        _require_equal(
            "maskgit.num_tokens", maskgit.num_tokens, "ctvit.codebook_size", codec.codebook_size
        )
    if critic:
        if maskgit is None:
            raise ConfigError("a model with a critic needs the maskgit section too")
        fields = module_fields(maskgit) if critic.kind == "self" else ("num_tokens", "context_dim")
        for name in fields:
            ours, theirs = getattr(critic, name), getattr(maskgit, name)
            _require_equal(f"critic.{name}", ours, f"maskgit.{name}", theirs)
    if maskgit and t5:
        _require_equal("maskgit.context_dim", maskgit.context_dim, "t5.dim", t5.dim)
    if unet and t5 and unet.text_embed_dim is not None:
        _require_equal("superres.text_embed_dim", unet.text_embed_dim, "t5.dim", t5.dim)
    if unet and not config.diffusion:
        raise ConfigError("a model with a U-Net (superres) needs the diffusion section too")
    if unet and unet.self_cond and config.diffusion and config.diffusion.process == "elucidated":
        raise ConfigError("superres.self_cond needs diffusion.process = 'continuous'")


def _require_equal(name: str, value: int | None, other: str, expected: int | None) -> None:
    if value != expected:
        raise ConfigError(f"{name} = {value} must equal {other} = {expected}")

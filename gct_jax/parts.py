"""The four parts of a model, built from their configs.

A part's name is also the name of its weight file. Every weight file is checked against the
structure that `abstract_variables` derives from the module itself.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from gct_jax.config import ModelConfig, module_fields
from gct_jax.errors import ConfigError, ModelFolderError
from gct_jax.models.ctvit import patch_sides
from gct_jax.random_keys import random_key

CONFIG_FIELD = {"ctvit": "ctvit", "maskgit": "maskgit", "superres": "unet", "t5": "t5"}
PARTS = tuple(CONFIG_FIELD)


def has_part(config: ModelConfig, part: str) -> bool:
    """Whether the model described by `config` contains `part`."""
    return getattr(config, CONFIG_FIELD[part]) is not None


def require_part(config: ModelConfig, part: str) -> None:
    """Raise ModelFolderError unless the model described by `config` contains `part`."""
    if not has_part(config, part):
        raise ModelFolderError(f"model '{config.name}' has no part '{part}'")


def build_part(config: ModelConfig, part: str, dtype: Any = jnp.float32, **attributes: Any) -> Any:
    """The Flax module of one part, computing in `dtype`.

    Args:
      attributes: of the module, beside those that the config has.

    Raises:
      ModelFolderError: the model has no such part.
    """
    require_part(config, part)
    fields = module_fields(getattr(config, CONFIG_FIELD[part]))
    return _module_class(part)(**fields, dtype=dtype, **attributes)


def _module_class(part: str) -> Any:
    # Imported on demand: a command that only decodes tokens need not load the U-Net.
    if part == "ctvit":
        from gct_jax.models.ctvit import CTViT

        return CTViT
    if part == "maskgit":
        from gct_jax.models.maskgit import MaskGit

        return MaskGit
    if part == "superres":
        from gct_jax.models.unet import UNet

        return UNet
    from gct_jax.models.t5 import T5Encoder

    return T5Encoder


def init_part(config: ModelConfig, part: str, key: jax.Array) -> dict[str, Any]:
    """Freshly initialised variables of a part."""
    arguments, keywords = _example_inputs(config, part)
    variables: Any = build_part(config, part).init(key, *arguments, **keywords)
    return variables


@functools.lru_cache(maxsize=16)
def abstract_variables(config: ModelConfig, part: str) -> dict[str, Any]:
    """Shapes and types of a part's variables, without computing anything. Not to be changed: the
    same dict is returned again for the same config."""
    return jax.eval_shape(functools.partial(init_part, config, part), random_key(0))


def _example_inputs(config: ModelConfig, part: str) -> tuple[tuple, dict[str, Any]]:
    """The smallest inputs through which every parameter of the part is used."""
    if part == "ctvit" and config.ctvit:
        size = patch_sides(config.ctvit.patch_size)
        slices = 1 + config.ctvit.temporal_patch_size
        return (jnp.zeros((1, slices, *size, config.ctvit.channels)),), {}
    if part == "maskgit" and config.maskgit:
        ids = jnp.zeros((1, 1, 1, 1), jnp.int32)
        if config.maskgit.context_dim is None:
            return (ids,), {}
        context = jnp.zeros((1, 1, config.maskgit.context_dim))
        return (ids, context, jnp.ones((1, 1), bool)), {}
    if part == "t5":
        return (jnp.zeros((1, 1), jnp.int32),), {}
    unet = config.unet
    assert unet is not None  # build_part has looked
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


def check_parts_fit(config: ModelConfig) -> None:
    """Check the sizes that two parts of a model share.

    Raises:
      ConfigError: they differ; the message holds both numbers.
    """
    ctvit, maskgit, t5, unet = config.ctvit, config.maskgit, config.t5, config.unet
    if ctvit:
        if any(config.volume.image_size % side for side in patch_sides(ctvit.patch_size)):
            raise ConfigError(
                f"volume.image_size = {config.volume.image_size} is no multiple of "
                f"ctvit.patch_size = {ctvit.patch_size}"
            )
        if (config.volume.slices - 1) % ctvit.temporal_patch_size:
            raise ConfigError(
                f"volume.slices = {config.volume.slices} is not 1 plus a multiple of "
                f"ctvit.temporal_patch_size = {ctvit.temporal_patch_size}"
            )
    if ctvit and maskgit:
        _require_equal(
            "maskgit.num_tokens", maskgit.num_tokens, "ctvit.codebook_size", ctvit.codebook_size
        )
    if maskgit and t5:
        _require_equal("maskgit.context_dim", maskgit.context_dim, "t5.dim", t5.dim)
    if unet and t5 and unet.text_embed_dim is not None:
        _require_equal("unet.text_embed_dim", unet.text_embed_dim, "t5.dim", t5.dim)
    if unet and not config.diffusion:
        raise ConfigError("a model with a unet needs the diffusion section too")


def _require_equal(name: str, value: int | None, other: str, expected: int) -> None:
    if value != expected:
        raise ConfigError(f"{name} = {value} must equal {other} = {expected}")

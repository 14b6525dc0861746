"""Every network can be built with nothing said, and says what can be said."""

import dataclasses
import importlib
import pkgutil
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import gct_jax.models
from gct_jax.config import CTViTConfig, MaskGitConfig, T5Config, UNetConfig, module_fields
from gct_jax.models.ctvit import CTViT
from gct_jax.models.maskgit import MaskGit
from gct_jax.models.t5 import T5Encoder
from gct_jax.models.unet import UNet

MODULES = [
    value
    for info in pkgutil.iter_modules(gct_jax.models.__path__, "gct_jax.models.")
    for module in [importlib.import_module(info.name)]
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, nn.Module)
    if value.__module__ == module.__name__
]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__qualname__)
def test_defaults_and_explanations(module):
    assert isinstance(module(), nn.Module)
    own = {field.name for field in dataclasses.fields(module)} - {"parent", "name"}
    for name in own:
        assert re.search(rf"\b{name}\b", module.__doc__), f"{name} is not explained"


@pytest.mark.parametrize(
    ("module", "config"),
    [(CTViT, CTViTConfig), (MaskGit, MaskGitConfig), (T5Encoder, T5Config), (UNet, UNetConfig)],
)
def test_the_defaults_are_those_of_the_configuration(module, config):
    stated = module_fields(config())
    assert {name: getattr(module(), name) for name in stated} == stated


def test_the_published_unet_by_default():
    image, text = jnp.zeros((1, 512, 512, 1)), jnp.zeros((1, 256, 768))
    conditions = {"low_res": image, "low_res_log_snr": jnp.zeros(1), "text": text}
    conditions["text_mask"] = jnp.ones((1, 256), bool)
    initialise = UNet().init_with_output
    out, _ = jax.eval_shape(initialise, jax.random.key(0), image, jnp.zeros(1), **conditions)
    assert out.shape == image.shape

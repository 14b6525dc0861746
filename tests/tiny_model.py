"""A complete model folder of tiny random networks, for tests of whatever needs a model."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from configs import tiny
from gct_jax.components import abstract_variables, present_components
from gct_jax.config import ModelConfig, VolumeConfig
from gct_jax.model_folder import save_model
from gct_jax.text import train_vocabulary

SENTENCES = [
    f"{age} years old {sex}: Large {side} pleural effusion. Cardiomegaly."
    for age in range(20, 90)
    for sex in ("male", "female")
    for side in ("left", "right")
]


@contextlib.contextmanager
def quick_compilation() -> Iterator[None]:
    """Within it JAX compiles with few optimisations: tiny arrays gain nothing from more."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def tiny_config() -> ModelConfig:
    """The shipped tiny model: 5 slices of 16x16 as 3x2x2 tokens, super-resolved to 32x32, with the
    vocabulary that these few sentences allow."""
    config = tiny.model()
    assert config.t5 is not None
    spacing = VolumeConfig(slices=5, image_size=16, slice_spacing_mm=9.0, pixel_spacing_mm=5.0)
    return dataclasses.replace(
        config, volume=spacing, t5=dataclasses.replace(config.t5, vocab_size=64)
    )


def random_variables(config: ModelConfig, component: str, seed: int = 0) -> dict:
    """Normal noise of standard deviation 0.3 in every tensor; cheaper than the module's `init`."""
    rng = np.random.default_rng(seed)
    fill = functools.partial(rng.normal, 0.0, 0.3)
    return jax.tree.map(
        lambda leaf: fill(size=leaf.shape).astype(np.float32), abstract_variables(config, component)
    )


def save_tiny_model(folder: Path, **options) -> Path:
    """Write the model to `folder` and return it."""
    config = tiny_config()
    vocabulary = folder.with_name("vocabulary.model")
    train_vocabulary(SENTENCES, vocabulary, config.t5.vocab_size)
    variables = {
        component: random_variables(config, component) for component in present_components(config)
    }
    save_model(folder, config, variables, vocabulary.read_bytes(), license_text="test", **options)
    vocabulary.unlink()
    return folder

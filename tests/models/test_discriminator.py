"""Slice discriminator: the published architecture at other image sizes, and what it refuses.
(Its golden logits are checked with the CT-ViT case.)"""

import jax
import jax.numpy as jnp
import pytest

from gct_jax.errors import InputError
from gct_jax.models.discriminator import Discriminator


def parameters(size, channels=1):
    images = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
    module = Discriminator(base_dim=1)
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    logits = jax.eval_shape(module.apply, variables, images)
    assert logits.shape == (2,)
    return variables["params"]


@pytest.mark.parametrize(
    ("size", "blocks", "attention"), [(8, 2, None), (16, 3, 0), (64, 5, 2), (256, 7, 4)]
)
def test_blocks_follow_the_image_size(size, blocks, attention):
    params = parameters(size)
    assert sum(name.startswith("block_") for name in params) == blocks
    assert [name for name in params if name.startswith("attention_")] == (
        [] if attention is None else [f"attention_{attention}"]
    )
    width = 4 * 2 ** (blocks - 1)
    assert params["logit"]["kernel"].shape == (16 * width, 1)  # a 4 x 4 map is left


def test_width_is_capped_and_channels_are_free():
    params = parameters(1024, channels=3)
    assert params["block_8"]["conv_0"]["kernel"].shape == (3, 3, 512, 512)
    assert params["block_0"]["conv_0"]["kernel"].shape == (3, 3, 3, 4)


@pytest.mark.parametrize("shape", [(1, 96, 96, 1), (1, 4, 4, 1), (1, 64, 32, 1)])
def test_other_sizes_are_refused(shape):
    with pytest.raises(InputError, match=f"slices of {shape[1]} x {shape[2]}"):
        Discriminator(base_dim=1).init(jax.random.key(0), jnp.zeros(shape))

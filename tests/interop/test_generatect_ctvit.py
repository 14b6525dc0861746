"""Sizes and parameter trees inferred from the reference's CT-ViT state dict."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_case import GoldenCase

from gct_jax.config import CTViTConfig, module_fields
from gct_jax.errors import ModelFolderError
from gct_jax.interop.generatect.ctvit import ctvit_from_reference, discriminator_from_reference
from gct_jax.models.ctvit import CTViT
from gct_jax.models.discriminator import Discriminator


@pytest.fixture
def state():
    return GoldenCase("ctvit").weights()


def shapes(tree):
    return jax.tree.map(jnp.shape, tree)


def test_config_and_tree(state):
    config, variables = ctvit_from_reference(state)
    assert config == CTViTConfig(
        channels=1,
        dim=32,
        codebook_size=64,
        patch_size=16,
        temporal_patch_size=2,
        spatial_depth=2,
        temporal_depth=2,
        heads=4,
        dim_head=8,
        temporal_attention="bidirectional",
        temporal_peg="interleaved",
        patch_norm="both",
    )
    module = CTViT(**module_fields(config))
    volume = jax.ShapeDtypeStruct((1, 3, 128, 128, 1), jnp.float32)
    expected = jax.eval_shape(module.init, jax.random.key(0), volume)
    assert shapes(variables) == shapes(expected)


def test_discriminator_tree(state):
    attributes, params = discriminator_from_reference(state)
    assert attributes == {"base_dim": 1, "attention_sizes": (16,)}
    images = jax.ShapeDtypeStruct((1, 128, 128, 1), jnp.float32)
    expected = jax.eval_shape(Discriminator(**attributes).init, jax.random.key(0), images)
    assert shapes(params) == shapes(expected["params"])


def test_perceptual_network_is_passed_over_and_discriminator_optional(state):
    bare = {name: a for name, a in state.items() if not name.startswith("discr.")}
    config, variables = ctvit_from_reference(bare)
    with_vgg = {**state, "vgg.features.0.weight": np.zeros((64, 3, 3, 3), np.float32)}
    assert (config, shapes(variables)) == (
        ctvit_from_reference(with_vgg)[0],
        shapes(ctvit_from_reference(with_vgg)[1]),
    )


@pytest.mark.parametrize(
    "name", ["to_pixels.0.bias", "dec_spatial_transformer.layers.1.1.to_q.weight"]
)
def test_missing_tensor_is_named(state, name):
    del state[name]
    with pytest.raises(ModelFolderError, match=name):
        ctvit_from_reference(state)


def test_unknown_tensor_is_named(state):
    with pytest.raises(ModelFolderError, match=r"1 unexpected tensor.*maskgit\.token_emb"):
        ctvit_from_reference({**state, "maskgit.token_emb": np.zeros(3, np.float32)})


def test_patches_that_are_not_square_are_refused(state):
    state["to_pixels_first_frame.0.bias"] = np.zeros(250, np.float32)
    with pytest.raises(ModelFolderError, match="patches of 250 and 512 values"):
        ctvit_from_reference(state)

"""Sizes and parameter trees inferred from reference state dicts."""

import jax
import jax.numpy as jnp
import pytest
from golden_case import FOLDER, GoldenCase
from safetensors.numpy import load_file

from gct_jax.config import MaskGitConfig, module_fields
from gct_jax.errors import ModelFolderError
from gct_jax.interop.generatect import maskgit as interop
from gct_jax.models.critics import SelfCritic, TokenCritic
from gct_jax.models.maskgit import MaskGit

SIZES = {
    "num_tokens": 64,
    "max_sequence_length": 200,
    "dim": 32,
    "context_dim": 24,
    "depth": 2,
    "heads": 4,
    "dim_head": 8,
}


def maskgit_state():
    return GoldenCase("maskgit").weights()


def shapes(tree):
    return jax.tree.map(jnp.shape, tree)


def init_shapes(module, context_dim=24):
    context = None if context_dim is None else jnp.zeros((1, 5, context_dim))
    ids = jnp.zeros((1, 2, 3, 3), jnp.int32)
    return shapes(jax.eval_shape(module.init, jax.random.key(0), ids, context))


def test_maskgit_sizes_and_tree():
    config, variables = interop.maskgit_from_reference(maskgit_state())
    assert config == MaskGitConfig(**SIZES)
    assert shapes(variables) == init_shapes(MaskGit(**module_fields(config)))


def test_critic_sizes_and_trees():
    state = load_file(FOLDER / "maskgit_train_critic.safetensors")
    config, variables = interop.token_critic_from_reference(state)
    assert config == MaskGitConfig(**SIZES | {"depth": 1})
    assert shapes(variables) == init_shapes(TokenCritic(**module_fields(config)))
    state = load_file(FOLDER / "critics_self.safetensors")
    config, variables = interop.self_critic_from_reference(state)
    assert config == MaskGitConfig(**SIZES)
    del variables["params"]["maskgit"]["to_logits"]  # the critic does not call this layer
    assert shapes(variables) == init_shapes(SelfCritic(MaskGit(**module_fields(config))))


def test_unconditional_weights_have_no_cross_attention():
    state = {k: v for k, v in maskgit_state().items() if ".layers.0.2." not in k}
    state = {k: v for k, v in state.items() if ".layers.1.2." not in k}
    config, variables = interop.maskgit_from_reference(state)
    assert config.context_dim is None
    assert shapes(variables) == init_shapes(MaskGit(**module_fields(config)), context_dim=None)


def test_wrong_weights_are_refused_by_name():
    state = maskgit_state()
    with pytest.raises(ModelFolderError, match="visual"):
        interop.maskgit_from_reference(state | {"visual.weight": state["to_logits.bias"]})
    with pytest.raises(ModelFolderError, match=r"to_logits\.weight.*63, 32.*\(64, 32\)"):
        interop.maskgit_from_reference(state | {"to_logits.weight": state["to_logits.weight"][1:]})
    del state["transformer.layers.1.1.k_scale"]
    with pytest.raises(ModelFolderError, match=r"transformer\.layers\.1\.1\.k_scale"):
        interop.maskgit_from_reference(state)

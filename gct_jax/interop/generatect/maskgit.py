"""PyTorch names and layouts of MaskGIT and its critics.

Sizes follow from the tensor shapes. The gradient shrink does not, and changes no output: to train
published weights on as before, give `MaskGit` a `scale_gradient` of 0.1.
"""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from gct_jax.components import abstract_variables
from gct_jax.config import CriticConfig, MaskGitConfig, ModelConfig, module_fields
from gct_jax.interop.generatect.layout import (
    Idle,
    Layout,
    Link,
    Params,
    State,
    count_indices,
    link,
    sizes,
    with_their_prefix,
    without_prefix,
)
from gct_jax.interop.generatect.transformer import dense, position_bias, transformer
from gct_jax.models.critics import TokenCritic
from gct_jax.random_keys import random_key


def maskgit_from_reference(state: State) -> tuple[MaskGitConfig, Params]:
    """Convert the state dict of a reference MaskGit (names without the prefix `maskgit.`).

    Returns:
      the configuration and {"params": ..} for `gct_jax.models.maskgit.MaskGit`.

    Raises:
      ModelFolderError: a tensor is missing, unknown or of a contradictory shape.
    """
    config = _config(state)
    return config, maskgit_layout(config).from_reference(state)


def maskgit_to_reference(
    config: MaskGitConfig, variables: Params, kept: State | None = None
) -> dict[str, np.ndarray]:
    """The inverse of `maskgit_from_reference`; `kept` is explained at `Layout.to_reference`."""
    return maskgit_layout(config).to_reference(variables, kept)


def token_critic_from_reference(state: State) -> tuple[MaskGitConfig, Params]:
    """Convert the state dict of a reference TokenCritic (names without the prefix `critic.`).

    Returns:
      the configuration and {"params": ..} for `gct_jax.models.critics.TokenCritic`.

    Raises:
      ModelFolderError: a tensor is missing, unknown or of a contradictory shape.
    """
    config = _config(state)
    return config, token_critic_layout(config).from_reference(state)


def self_critic_from_reference(state: State) -> tuple[MaskGitConfig, Params]:
    """Convert the state dict of a reference SelfCritic, which contains its MaskGit.

    Returns:
      the configuration of the MaskGit and {"params": ..} for `SelfCritic(MaskGit(..))`.

    Raises:
      ModelFolderError: a tensor is missing, unknown or of a contradictory shape.
    """
    config = _config(without_prefix(state, "maskgit."))
    return config, self_critic_layout(config).from_reference(state)


def critic_from_reference(state: State) -> tuple[CriticConfig, Params]:
    """Convert a transformer's critic (names without the prefix `critic.`, without its MaskGit).

    Returns:
      the configuration and {"params": ..} of the component "critic". The sizes of a self critic
      are those of its MaskGit, of which these tensors tell the width alone.

    Raises:
      ModelFolderError: a tensor is missing, unknown or of a contradictory shape.
    """
    if "to_pred.0.weight" in state:
        width = sizes(state, "to_pred.0.weight", 2)[1]
        config = CriticConfig(kind="self", dim=width)
    else:
        config = CriticConfig(**dataclasses.asdict(_config(state)), kind="token")
    return config, critic_layout(config).from_reference(state)


def critic_layout(config: CriticConfig) -> Layout:
    """Which tensor of the reference holds which variable of the component "critic"."""
    if config.kind == "token":
        return token_critic_layout(MaskGitConfig(**module_fields(config)))
    return Layout.of({"params": {"to_score": _score(config.dim)}}, _score_entries())


def maskgit_layout(config: MaskGitConfig) -> Layout:
    """Which tensor of the reference holds which variable of `MaskGit`."""
    return Layout.of(abstract_variables(ModelConfig(maskgit=config), "maskgit"), _entries(config))


def token_critic_layout(config: MaskGitConfig) -> Layout:
    """Which tensor of the reference holds which variable of `TokenCritic`."""
    ids = jnp.zeros((1, 1, 1, 1), jnp.int32)
    context = None if config.context_dim is None else jnp.zeros((1, 1, config.context_dim))
    init = TokenCritic(**module_fields(config)).init
    entries = [*_entries(config), *dense("params.to_score", "to_logits.0")]
    return Layout.of(jax.eval_shape(init, random_key(0), ids, context), entries)


def self_critic_layout(config: MaskGitConfig) -> Layout:
    """Which tensor of the reference holds which variable of `SelfCritic`."""
    maskgit = abstract_variables(ModelConfig(maskgit=config), "maskgit")["params"]
    entries = [
        *with_their_prefix(_entries(config, "params.maskgit"), "maskgit."),
        *_score_entries(),
    ]
    return Layout.of({"params": {"maskgit": maskgit, "to_score": _score(config.dim)}}, entries)


def _score(dim: int) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        "kernel": jax.ShapeDtypeStruct((dim, 1), jnp.float32),
        "bias": jax.ShapeDtypeStruct((1,), jnp.float32),
    }


def _score_entries() -> Iterator[Link | Idle]:
    yield from dense("params.to_score", "to_pred.0")


def _entries(config: MaskGitConfig, ours: str = "params") -> Iterator[Link | Idle]:
    yield link(f"{ours}.embedding.token.embedding", "token_emb.weight")
    yield link(f"{ours}.embedding.position", "pos_emb.weight")
    yield from position_bias(f"{ours}.position_bias", "continuous_pos_bias")
    yield from transformer(
        f"{ours}.transformer",
        "transformer",
        dim=config.dim,
        depth=config.depth,
        heads=config.heads,
        dim_head=config.dim_head,
        context_dim=config.context_dim,
    )
    yield from dense(f"{ours}.to_logits", "to_logits")


def _config(state: State) -> MaskGitConfig:
    rows, dim = sizes(state, "token_emb.weight", 2)
    (dim_head,) = sizes(state, "transformer.layers.0.1.q_scale", 1)
    cross = "transformer.layers.0.2.to_kv.weight"
    ff_dim = sizes(state, "transformer.layers.0.3.4.weight", 2)[1]
    return MaskGitConfig(
        num_tokens=rows - 1,
        max_sequence_length=sizes(state, "pos_emb.weight", 2)[0],
        dim=dim,
        context_dim=sizes(state, cross, 2)[1] if cross in state else None,
        depth=count_indices(state, "transformer.layers."),
        heads=sizes(state, "transformer.layers.0.1.to_q.weight", 2)[0] // dim_head,
        dim_head=dim_head,
        ff_dim=None if ff_dim == 8 * dim // 3 else ff_dim,
    )

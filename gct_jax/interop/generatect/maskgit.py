"""Published MaskGIT and critic weights -> configuration and variables.

Sizes follow from the tensor shapes. The gradient shrink does not, and changes no output: to train
published weights on as before, give `MaskGit` a `gradient_shrink` of 0.1.
"""

from gct_jax.config import MaskGitConfig
from gct_jax.errors import ModelFolderError
from gct_jax.interop.generatect.transformer import (
    Params,
    State,
    count_indices,
    dense,
    position_bias,
    require_known,
    tensor,
    transformer,
)


def maskgit_from_reference(state: State) -> tuple[MaskGitConfig, Params]:
    """Convert the state dict of a reference MaskGit (names without the prefix `maskgit.`).

    Returns:
      the configuration and {"params": ..} for `gct_jax.models.maskgit.MaskGit`.

    Raises:
      ModelFolderError: a tensor is missing, unknown or of a contradictory shape.
    """
    require_known(
        state, ("token_emb.", "pos_emb.", "continuous_pos_bias.", "transformer.", "to_logits.")
    )
    config = _config(state)
    logits = tensor(state, "to_logits.weight").shape[0]
    if logits != config.num_tokens:
        raise ModelFolderError(
            f"to_logits.weight has {logits} rows, token_emb.weight implies {config.num_tokens}"
        )
    params = {
        "embedding": _embedding(state),
        "position_bias": position_bias(state, "continuous_pos_bias"),
        "transformer": transformer(state, "transformer"),
        "to_logits": dense(state, "to_logits"),
    }
    return config, {"params": params}


def token_critic_from_reference(state: State) -> tuple[MaskGitConfig, Params]:
    """Convert the state dict of a reference TokenCritic (names without the prefix `critic.`).

    Returns:
      the configuration and {"params": ..} for `gct_jax.models.critics.TokenCritic`.

    Raises:
      ModelFolderError: a tensor is missing or unknown.
    """
    require_known(state, ("token_emb.", "pos_emb.", "transformer.", "to_logits.0."))
    params = {
        "embedding": _embedding(state),
        "transformer": transformer(state, "transformer"),
        "to_score": dense(state, "to_logits.0"),
    }
    return _config(state), {"params": params}


def self_critic_from_reference(state: State) -> tuple[MaskGitConfig, Params]:
    """Convert the state dict of a reference SelfCritic, which contains its MaskGit.

    Returns:
      the configuration of the MaskGit and {"params": ..} for `SelfCritic(MaskGit(..))`.

    Raises:
      ModelFolderError: a tensor is missing, unknown or of a contradictory shape.
    """
    require_known(state, ("maskgit.", "to_pred.0."))
    config, maskgit = maskgit_from_reference(
        {
            name.removeprefix("maskgit."): value
            for name, value in state.items()
            if "to_pred" not in name
        }
    )
    params = {"maskgit": maskgit["params"], "to_score": dense(state, "to_pred.0")}
    return config, {"params": params}


def _config(state: State) -> MaskGitConfig:
    rows, dim = tensor(state, "token_emb.weight").shape
    dim_head = tensor(state, "transformer.layers.0.1.q_scale").shape[0]
    cross = "transformer.layers.0.2.to_kv.weight"
    return MaskGitConfig(
        num_tokens=rows - 1,
        max_sequence_length=tensor(state, "pos_emb.weight").shape[0],
        dim=dim,
        context_dim=tensor(state, cross).shape[1] if cross in state else None,
        depth=count_indices(state, "transformer.layers."),
        heads=tensor(state, "transformer.layers.0.1.to_q.weight").shape[0] // dim_head,
        dim_head=dim_head,
    )


def _embedding(state: State) -> Params:
    return {
        "token": {"embedding": tensor(state, "token_emb.weight")},
        "position": tensor(state, "pos_emb.weight"),
    }

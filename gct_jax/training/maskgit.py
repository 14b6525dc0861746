"""Stage two: MaskGIT learns to fill in masked tokens of a volume from its report.

For token ids x of a volume and its text c, with a masking ratio r(p), p ~ U[0, 1):

    M ~ uniform subset of round(r n) tokens                                     (masking (1), (2))
    L = -mean over M of log p(x_i | x outside M, c or nothing)                                 (1)

"Nothing" for a share `text_drop` of the samples: cross attention then sees its null keys only,
which is the branch that guidance needs. With a critic, tokens sampled from p replace the masked
ones and the critic learns to tell them from true ones:

    L <- L + w BCE(critic(x outside M, y inside M), [token is wrong])                    (2)

The text encoder is trained with the rest (`train_text_encoder`) or frozen.

Most of a volume follows from the patient, not from the report, so the report's effect drowns in the
noise of small batches. With `counterfactual_pairs` a batch holds each patient twice, with different
findings and reports but one mask: what the report does not explain is then the same in both and
cancels in the gradient of the text, and differing tokens may weigh more in (1).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from gct_jax.components import (
    abstract_variables,
    build_component,
    init_component,
    joined_variables,
)
from gct_jax.corruption import masking
from gct_jax.random_keys import row_uniforms
from gct_jax.training import counterfactual_pairs
from gct_jax.training.config import TrainConfig
from gct_jax.training.hidden_units import cropped, padded
from gct_jax.training.micro_batches import in_micro_batches
from gct_jax.training.optimizer import (
    apply_gradients,
    learning_rate,
    make_optimizer,
    slowed,
    update_ema,
)
from gct_jax.training.state import TrainState

Metrics = dict[str, jax.Array]


def models(config: TrainConfig) -> tuple[Any, Any]:
    """MaskGIT and the critic that the run trains with it, or None."""
    attributes = {
        "remat": config.remat,
        "scale_gradient": config.maskgit.scale_gradient,
    }
    maskgit = build_component(config.model, "maskgit", config.dtype, **attributes)
    if config.maskgit.critic == "none":
        return maskgit, None
    if config.maskgit.critic == "token":
        del attributes["scale_gradient"]  # the critic's embeddings are its own
    return maskgit, build_component(config.model, "critic", config.dtype, **attributes)


def optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """The run's optimizer, slower for the text encoder."""
    return optax.chain(
        make_optimizer(config.optimizer, config.loop.steps),
        slowed("t5", config.maskgit.text_encoder_rate),
    )


def init_state(config: TrainConfig, key: jax.Array, pretrained: dict[str, PyTree]) -> TrainState:
    """Fresh state; "t5", "maskgit" and "critic" come from `pretrained` where it has them."""
    names = ["maskgit", "t5", *(["critic"] if config.maskgit.critic != "none" else [])]
    params = {
        name: (pretrained[name] if name in pretrained else init_component(config.model, name, own))[
            "params"
        ]
        for name, own in zip(names, jax.random.split(key, 3), strict=False)
    }
    params = {name: padded(tree) for name, tree in params.items()}
    extra = {} if config.maskgit.train_text_encoder else {"t5": params.pop("t5")}
    return TrainState(
        step=jnp.int32(0),
        key=key,
        params=params,
        ema=params,
        opt_state={"all": optimizer(config).init(params)},
        extra=extra,
    )


def loss_fn(
    params: PyTree,
    extra: PyTree,
    config: TrainConfig,
    batch: dict[str, jax.Array],
    key: jax.Array,
    text_drop: float,
) -> tuple[jax.Array, Metrics]:
    """Equations (1) and (2).

    Args:
      batch: {'token_ids' int32 [b, t, h, w], 'text_ids' int32 [b, l] padded with 0}, rows 2i and
        2i + 1 a counterfactual pair if the configuration says so. Of a frozen encoder, 'text'
        float32 [b, l, e] and 'text_mask' bool [b, l] may stand for 'text_ids'. 'token_mask' bool
        [b, t, h, w] is False for tokens that pad the end.
    """
    ids, token_mask = batch["token_ids"], batch.get("token_mask")
    valid = jnp.ones(ids.shape, bool) if token_mask is None else token_mask
    ratio_key, subset_key, drop_key, sample_key = jax.random.split(key, 4)

    copies = 2 if config.maskgit.counterfactual_pairs else 1
    patients = ids.shape[0] // copies
    keep = jax.random.uniform(drop_key, (patients, 1)) >= text_drop
    ratio = masking.sample_mask_ratio(ratio_key, patients, config.maskgit.mask_levels or None)
    uniforms = row_uniforms(subset_key, (patients, *ids.shape[1:]))
    masked = jnp.repeat(masking.random_subset(uniforms, ratio, valid[::copies]), copies, axis=0)
    weight = masked.astype(jnp.float32)
    if config.maskgit.counterfactual_pairs:
        extra_weight = config.maskgit.counterfactual_weight
        weight = masked * counterfactual_pairs.difference_weight(ids, extra_weight)

    rows = {
        "ids": ids,
        "token_mask": token_mask,
        "masked": masked,
        "weight": weight,
        "keep_text": jnp.repeat(keep, copies, axis=0),  # [b, 1]
        "number": jnp.arange(ids.shape[0]),
        **{name: array for name, array in batch.items() if name.startswith("text")},
    }
    sums = in_micro_batches(
        functools.partial(row_sums, config, params, extra, sample_key), config.loop.micro_batches
    )(rows)
    loss = sums["cross_entropy"].sum() / jnp.maximum(weight.sum(), 1)
    metrics = {
        "cross_entropy": loss,
        "accuracy": sums["right"].sum() / masked.sum(),
        "masked_share": masked.sum() / valid.sum(),
    }
    if "critic" in sums:
        metrics["critic"] = sums["critic"].sum() / jnp.maximum(valid.sum(), 1)
        loss += config.maskgit.critic_weight * metrics["critic"]
    return loss, {"loss": loss, **metrics}


def row_sums(
    config: TrainConfig,
    params: PyTree,
    extra: PyTree,
    sample_key: jax.Array,
    rows: dict[str, Any],
) -> Metrics:
    """What the losses and the accuracy sum over the tokens of each row, float32 [b] by name.

    Args:
      sample_key: of the tokens that a critic judges.
      rows: what `loss_fn` makes of a batch, or some rows of it; 'number' int32 [b] are their
        numbers in it.
    """
    ids, masked, token_mask = rows["ids"], rows["masked"], rows["token_mask"]
    maskgit, critic = models(config)
    text, read = embedded_text(params, extra, config, rows)
    text_mask = read & rows["keep_text"]  # [b, l]
    masked_ids = jnp.where(masked, maskgit.num_tokens, ids)
    logits = maskgit.apply({"params": params["maskgit"]}, masked_ids, text, text_mask, token_mask)
    right = (jnp.argmax(logits, -1) == ids) & masked
    sums = {
        "cross_entropy": per_row(masking.token_losses(logits, ids) * rows["weight"]),
        "right": per_row(right.astype(jnp.float32)),
    }
    if critic is None:
        return sums
    uniforms = row_uniforms(sample_key, logits.shape, rows["number"])
    drawn = masking.gumbel_argmax(jax.lax.stop_gradient(logits), uniforms, 1.0)
    judged = jnp.where(masked, drawn, ids)
    variables = {name: {"params": tree} for name, tree in params.items()}
    critic_variables = joined_variables(config.model, "critic", variables)
    scores = critic.apply(critic_variables, judged, text, text_mask, token_mask)
    losses = masking.critic_losses(scores, masking.critic_labels(judged, ids))
    return sums | {"critic": per_row(losses if token_mask is None else losses * token_mask)}


def per_row(values: jax.Array) -> jax.Array:
    """Sums over all axes but the first."""
    return values.sum(axis=tuple(range(1, values.ndim)))


def embedded_text(
    params: PyTree, extra: PyTree, config: TrainConfig, batch: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Text embeddings [b, l, e] and which of them are read [b, l]: those of the batch, or of its
    ids by the encoder that is trained or frozen here."""
    if "text" in batch:
        return batch["text"], batch["text_mask"]
    t5: Any = build_component(config.model, "t5", config.dtype)
    t5_params = params["t5"] if "t5" in params else extra["t5"]
    return t5.apply({"params": t5_params}, batch["text_ids"]), batch["text_ids"] > 0


def train_step(
    config: TrainConfig, state: TrainState, batch: dict[str, jax.Array], key: jax.Array
) -> tuple[TrainState, Metrics]:
    """One update of everything trained."""
    (_, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(
        state.params, state.extra, config, batch, key, config.maskgit.text_drop
    )
    params, opt_state, norms = apply_gradients(
        optimizer(config),
        grads,
        state.opt_state["all"],
        state.params,
    )
    ema = update_ema(state.ema, params, state.step, config.optimizer.ema_decay)
    rate = learning_rate(config.optimizer, config.loop.steps, state.step)
    state = state.replace(params=params, ema=ema, opt_state={"all": opt_state})
    return state, {**metrics, **norms, "learning_rate": rate}


def eval_step(
    config: TrainConfig, state: TrainState, batch: dict[str, jax.Array], key: jax.Array
) -> Metrics:
    """Losses of the averaged weights, every text kept; with counterfactual pairs also `text_gain`,
    by how much the loss rises when they exchange reports: 0 if the text is not used."""
    metrics = loss_fn(state.ema, state.extra, config, batch, key, text_drop=0.0)[1]
    if config.maskgit.counterfactual_pairs:
        texts = {name: rows for name, rows in batch.items() if name.startswith("text")}
        exchanged = {**batch, **jax.tree.map(counterfactual_pairs.exchange, texts)}
        wrong = loss_fn(state.ema, state.extra, config, exchanged, key, text_drop=0.0)[1]
        metrics["text_gain"] = wrong["cross_entropy"] - metrics["cross_entropy"]
    return metrics


def shipped_items(config: TrainConfig) -> tuple[str, ...]:
    """What `trained_components` needs of a checkpoint."""
    t5 = "ema.t5" if config.maskgit.train_text_encoder else "extra.t5"
    return ("ema.maskgit", t5, *(["ema.critic"] if config.maskgit.critic != "none" else []))


def trained_components(config: TrainConfig, state: TrainState) -> dict[str, Any]:
    """Averaged weights as components of a model folder."""
    return {
        name: {"params": cropped(params, abstract_variables(config.model, name)["params"])}
        for name, params in {**state.extra, **state.ema}.items()
    }

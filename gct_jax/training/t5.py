"""Before stage two, optional: a small T5 learns what its reports say.

MaskGIT's loss alone teaches a text encoder slowly, since a word like "left" moves few tokens of
a volume. Reports whose content is known are cheap, so T5 first learns to make it readable: with
attributes a of a report (which finding, on which side, where, how large) and the classifiers of
`gct_jax.models.attribute_reader`, which read the mean of the words or attend to them,

    L = -mean over the stated a of [log p_mean(a | text) + log p_attended(a | text)]        (1)

The classifiers are thrown away afterwards; MaskGIT's stage goes on training T5.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from gct_jax.components import build_component, init_component
from gct_jax.models.attribute_reader import AttributeReader
from gct_jax.training.config import TrainConfig
from gct_jax.training.micro_batches import in_micro_batches
from gct_jax.training.optimizer import (
    apply_gradients,
    learning_rate,
    make_optimizer,
    update_ema,
)
from gct_jax.training.state import TrainState

Metrics = dict[str, jax.Array]


def reader(config: TrainConfig) -> AttributeReader:
    """The run's classifiers."""
    return AttributeReader(config.t5.attributes, config.t5.classes)


def init_state(config: TrainConfig, key: jax.Array, pretrained: dict[str, PyTree]) -> TrainState:
    """Fresh state; "t5" comes from `pretrained` where it has it."""
    t5_key, reader_key = jax.random.split(key)
    variables = (
        pretrained["t5"] if "t5" in pretrained else init_component(config.model, "t5", t5_key)
    )
    t5: Any = build_component(config.model, "t5", config.dtype)
    text, mask = jnp.zeros((1, 1, t5.dim)), jnp.ones((1, 1), bool)
    params = {
        "t5": variables["params"],
        "reader": reader(config).init(reader_key, text, mask)["params"],
    }
    return TrainState(
        step=jnp.int32(0),
        key=key,
        params=params,
        ema=params,
        opt_state={"all": make_optimizer(config.optimizer, config.loop.steps).init(params)},
        extra={},
    )


def loss_fn(
    params: PyTree, config: TrainConfig, batch: dict[str, jax.Array]
) -> tuple[jax.Array, Metrics]:
    """Equation (1).

    Args:
      batch: {'text_ids' int32 [b, l] padded with 0, 'attributes' int32 [b, a], -1 where the
        report does not say}.
    """
    text_ids, attributes = batch["text_ids"], batch["attributes"]
    t5: Any = build_component(config.model, "t5", config.dtype)
    embed = in_micro_batches(
        lambda ids: t5.apply({"params": params["t5"]}, ids), config.loop.micro_batches
    )
    text = embed(text_ids)  # [b, l, e]
    read: Any = reader(config).apply({"params": params["reader"]}, text, text_ids > 0)
    stated = attributes >= 0
    count = jnp.maximum(stated.sum(), 1)
    metrics, loss = {}, jnp.float32(0)
    for name, logits in zip(("mean", "attended"), read, strict=True):  # [b, a, classes]
        entropies = optax.softmax_cross_entropy_with_integer_labels(logits, attributes.clip(0))
        loss += jnp.sum(entropies, where=stated) / count
        right = (logits.argmax(-1) == attributes) & stated
        metrics[f"accuracy/{name}"] = right.sum() / count
    return loss, {"loss": loss, **metrics}


def train_step(
    config: TrainConfig, state: TrainState, batch: dict[str, jax.Array], key: jax.Array
) -> tuple[TrainState, Metrics]:
    """One update of T5 and the classifiers. Nothing is random: `key` goes unused."""
    (_, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, config, batch)
    params, opt_state, norms = apply_gradients(
        make_optimizer(config.optimizer, config.loop.steps),
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
    """Loss and accuracy of the averaged weights; `key` goes unused."""
    return loss_fn(state.ema, config, batch)[1]


def shipped_items(config: TrainConfig) -> tuple[str, ...]:
    """What `trained_components` needs of a checkpoint."""
    return ("ema.t5",)


def trained_components(config: TrainConfig, state: TrainState) -> dict[str, Any]:
    """The averaged encoder as the component of a model folder."""
    return {"t5": {"params": state.ema["t5"]}}

"""Stage one: CT-ViT learns to rebuild volumes through its codebook.

    L = w_r |v - v'|^2 + w_c commitment + w_s |window(v) - window(v')|                         (1)

The codebook follows the encoder by moving averages, after the gradient step's forward pass; hardly
used rows are replaced by tokens of the batch.
"""

from typing import Any

import jax
import jax.numpy as jnp

from gct_jax.models import quantizer
from gct_jax.models.ctvit import CTViTOutput
from gct_jax.parts import build_part
from gct_jax.training import ctvit_losses as losses
from gct_jax.training.config import TrainConfig
from gct_jax.training.optimizer import (
    apply_gradients,
    learning_rate,
    make_optimizer,
    update_average,
)
from gct_jax.training.state import TrainState

Metrics = dict[str, jax.Array]


def init_state(config: TrainConfig, key: jax.Array, pretrained: dict[str, Any]) -> TrainState:
    """Fresh state, or one that continues from `pretrained["ctvit"]`."""
    variables = pretrained.get("ctvit")
    if variables is None:
        size, fields = config.model.volume.image_size, config.model.ctvit
        volume = jnp.zeros((1, 1 + fields.temporal_patch_size, size, size, fields.channels))
        variables = build_part(config.model, "ctvit").init(key, volume)
    params = {"ctvit": variables["params"]}
    optimizer = make_optimizer(config.optimizer, config.loop.steps)
    return TrainState(
        step=jnp.int32(0),
        key=key,
        params=params,
        ema=params,
        opt_state={"ctvit": optimizer.init(params["ctvit"])},
        extra={"codebook": variables["codebook"]["quantizer"]},
    )


def forward(config: TrainConfig, params: Any, codebook: Any, volume: jax.Array) -> CTViTOutput:
    """One pass of CT-ViT with the codebook as it is."""
    variables = {"params": params, "codebook": {"quantizer": codebook}}
    return build_part(config.model, "ctvit").apply(variables, volume)


def window_error(volume: jax.Array, reconstruction: jax.Array) -> jax.Array:
    low, high = -0.125, 0.225
    return jnp.mean(jnp.abs(jnp.clip(volume, low, high) - jnp.clip(reconstruction, low, high))) / (
        high - low
    )


def loss_fn(
    params: Any, codebook: Any, config: TrainConfig, volume: jax.Array
) -> tuple[jax.Array, tuple[Metrics, CTViTOutput]]:
    """Equation (1) for volumes [b, d, h, w, c] in [-1, 1]."""
    weights = config.ctvit
    out = forward(config, params, codebook, volume)
    reconstruction = losses.reconstruction_loss(volume, out.reconstruction)
    commitment = losses.commitment_loss(out.latents, out.codes, form=weights.commitment)
    window = window_error(volume, out.reconstruction)
    loss = (
        weights.reconstruction_weight * reconstruction
        + weights.commitment_weight * commitment
        + weights.window_weight * window
    )
    metrics = {
        "loss": loss,
        "reconstruction": reconstruction,
        "commitment": commitment,
        "window_error": window,
        "psnr": 10 * jnp.log10(4 / reconstruction),
        **{
            f"codebook/{name}": value
            for name, value in quantizer.codebook_usage(
                out.ids, codebook["embedding"].shape[0]
            ).items()
        },
    }
    return loss, (metrics, out)


def train_step(
    config: TrainConfig, state: TrainState, batch: dict[str, jax.Array], key: jax.Array
) -> tuple[TrainState, Metrics]:
    """One update of CT-ViT and its codebook. batch: {'volume' [b, d, h, w, c] in [-1, 1]}."""
    codebook = state.extra["codebook"]
    grads, (metrics, out) = jax.grad(loss_fn, has_aux=True)(
        state.params["ctvit"], codebook, config, batch["volume"]
    )
    params, opt_state, norms = apply_gradients(
        make_optimizer(config.optimizer, config.loop.steps),
        grads,
        state.opt_state["ctvit"],
        state.params["ctvit"],
    )
    state = state.replace(
        params={**state.params, "ctvit": params},
        ema=update_average(state.ema, {"ctvit": params}, state.step, config.optimizer.ema_decay),
        opt_state={**state.opt_state, "ctvit": opt_state},
        extra={"codebook": update_codebook(config, state, out, key)},
    )
    rate = learning_rate(config.optimizer, config.loop.steps, state.step)
    return state, {**metrics, **norms, "learning_rate": rate}


def update_codebook(
    config: TrainConfig, state: TrainState, out: CTViTOutput, key: jax.Array
) -> Any:
    """Moving averages and revival; the first batch's tokens make the first codebook."""

    def follow(codebook: Any) -> Any:
        codebook = quantizer.ema_update(
            codebook, out.latents, out.ids, decay=config.ctvit.codebook_decay
        )
        return quantizer.revive_dead_codes(
            key, codebook, out.latents, threshold=config.ctvit.dead_code_threshold
        )

    def begin(codebook: Any) -> Any:
        return quantizer.codebook_from_latents(key, out.latents, codebook["embedding"].shape[0])

    codebook = state.extra["codebook"]
    unused = jnp.sum(codebook["cluster_size"]) == 0  # only a codebook that has never been updated
    return jax.lax.cond(unused, begin, follow, codebook)


def eval_step(
    config: TrainConfig, state: TrainState, batch: dict[str, jax.Array], key: jax.Array
) -> Metrics:
    """Losses of the averaged weights."""
    return loss_fn(state.ema["ctvit"], state.extra["codebook"], config, batch["volume"])[1][0]


def trained_parts(config: TrainConfig, state: TrainState) -> dict[str, Any]:
    """Averaged weights and codebook as the part of a model folder."""
    codebook = {"quantizer": state.extra["codebook"]}
    return {"ctvit": {"params": state.ema["ctvit"], "codebook": codebook}}

"""Stage three: a diffusion U-Net learns to enlarge slices (GenerateCT, section 3.3).

For a slice x, its low-resolution partner y and its report c, with t, a and e at random:

    x_t = alpha_t x + sigma_t e,   y_a = alpha_a up(y) + sigma_a e'                            (1)
    L   = mean p2(t) |U(x_t, lambda_t, y_a, lambda_a, c or nothing) - v|^2                     (2)

or, of a model with the elucidated process, `superres_losses.elucidated_loss` instead of (2).

a is drawn per slice, uniformly from a range (augmentation of the condition, Ho et al. 2021); the
text is dropped for a share of the slices. y is a reconstruction of CT-ViT, which is what the
network is given when it is used. The text encoder is frozen.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from gct_jax.components import build_component, init_component
from gct_jax.corruption.elucidated import draw_sigma
from gct_jax.corruption.low_res import noised_low_res
from gct_jax.training.config import TrainConfig
from gct_jax.training.micro_batches import in_micro_batches
from gct_jax.training.optimizer import (
    apply_gradients,
    learning_rate,
    make_optimizer,
    update_ema,
)
from gct_jax.training.state import TrainState
from gct_jax.training.superres_losses import elucidated_loss, superres_loss

Metrics = dict[str, jax.Array]


def init_state(config: TrainConfig, key: jax.Array, pretrained: dict[str, PyTree]) -> TrainState:
    """Fresh state with the text encoder `pretrained["t5"]` frozen in it; the U-Net continues from
    `pretrained["superres"]` if given."""
    unet_key, t5_key = jax.random.split(key)
    start = {
        name: pretrained[name] if name in pretrained else init_component(config.model, name, own)
        for name, own in (("superres", unet_key), ("t5", t5_key))
    }
    params = {"superres": start["superres"]["params"]}
    optimizer = make_optimizer(config.optimizer, config.loop.steps)
    return TrainState(
        step=jnp.int32(0),
        key=key,
        params=params,
        ema=params,
        opt_state={"superres": optimizer.init(params["superres"])},
        extra={"t5": start["t5"]["params"]},
    )


def random_squares(
    key: jax.Array, low_res: jax.Array, high_res: jax.Array, size: int
) -> tuple[jax.Array, jax.Array]:
    """The same random square of both images, `size` pixels of the larger one; size 0 is all.

    low_res [b, h, w, c], high_res [b, s h, s w, c] with a whole s that divides `size`.
    """
    if not size:
        return low_res, high_res
    factor = high_res.shape[1] // low_res.shape[1]
    small, channels = size // factor, low_res.shape[-1]
    corners = jax.random.randint(key, (len(low_res), 2), 0, low_res.shape[1] - small + 1)

    def cut(image: jax.Array, corner: jax.Array, side: int) -> jax.Array:
        return jax.lax.dynamic_slice(image, (*corner, 0), (side, side, channels))

    cut_all = jax.vmap(cut, in_axes=(0, 0, None))
    return cut_all(low_res, corners, small), cut_all(high_res, corners * factor, size)


def loss_fn(
    params: PyTree,
    extra: PyTree,
    config: TrainConfig,
    batch: dict[str, jax.Array],
    key: jax.Array,
    text_drop: float,
) -> jax.Array:
    """Equation (2), or the elucidated loss.

    batch: {'low_res' [b, h, w, c], 'high_res' [b, H, W, c] in [-1, 1], 'text_ids' int32 [b, l]}.
    """
    options, diffusion, text_ids = config.superres, config.model.diffusion, batch["text_ids"]
    assert diffusion is not None  # check_components_fit: a model with a U-Net has it
    keys = jax.random.split(key, 6)
    low_res, high_res = random_squares(keys[0], batch["low_res"], batch["high_res"], options.crop)
    unet: Any = build_component(config.model, "superres", config.dtype, remat=config.remat)
    t5: Any = build_component(config.model, "t5", config.dtype)
    slices = len(low_res)
    level = jax.random.uniform(
        keys[1], (slices,), minval=options.low_res_noise_min, maxval=options.low_res_noise_max
    )
    condition, condition_log_snr = noised_low_res(
        low_res,
        jax.random.normal(keys[2], high_res.shape),
        level,
        diffusion.low_res_noise_schedule,
    )
    conditions = {
        "low_res": condition,
        "low_res_log_snr": condition_log_snr,
        "text": t5.apply({"params": extra["t5"]}, text_ids),
        "text_mask": text_ids > 0,
        "keep_text": jax.random.uniform(keys[3], (slices,)) >= text_drop,
    }

    network = in_micro_batches(
        lambda x, level, inputs: unet.apply({"params": params}, x, level, **inputs),
        config.loop.micro_batches,
    )

    def apply(x: jax.Array, level: jax.Array, **inputs: Any) -> jax.Array:
        prediction: jax.Array = network(x, level, inputs)
        return prediction

    time_key, self_key = jax.random.split(keys[4])
    noise = jax.random.normal(keys[5], high_res.shape)
    if diffusion.process == "elucidated":
        sigma = draw_sigma(time_key, slices)
        return elucidated_loss(apply, high_res, conditions, sigma=sigma, noise=noise)
    return superres_loss(
        apply,
        high_res,
        conditions,
        time=jax.random.uniform(time_key, (slices,)),
        noise=noise,
        objective=diffusion.objective,
        schedule=diffusion.noise_schedule,
        p2_loss_weight_gamma=diffusion.p2_loss_weight_gamma,
        p2_loss_weight_k=diffusion.p2_loss_weight_k,
        self_condition=jax.random.bernoulli(self_key, 0.5, (slices,)) if unet.self_cond else None,
    )


def train_step(
    config: TrainConfig, state: TrainState, batch: dict[str, jax.Array], key: jax.Array
) -> tuple[TrainState, Metrics]:
    """One update of the U-Net; batch as in `loss_fn`."""
    loss, grads = jax.value_and_grad(loss_fn)(
        state.params["superres"], state.extra, config, batch, key, config.superres.text_drop
    )
    unet, opt_state, norms = apply_gradients(
        make_optimizer(config.optimizer, config.loop.steps),
        grads,
        state.opt_state["superres"],
        state.params["superres"],
    )
    params = {"superres": unet}
    ema = update_ema(state.ema, params, state.step, config.optimizer.ema_decay)
    rate = learning_rate(config.optimizer, config.loop.steps, state.step)
    state = state.replace(params=params, ema=ema, opt_state={"superres": opt_state})
    return state, {"loss": loss, **norms, "learning_rate": rate}


def eval_step(
    config: TrainConfig, state: TrainState, batch: dict[str, jax.Array], key: jax.Array
) -> Metrics:
    """Loss of the averaged weights, every text kept."""
    return {"loss": loss_fn(state.ema["superres"], state.extra, config, batch, key, text_drop=0.0)}


def shipped_items(config: TrainConfig) -> tuple[str, ...]:
    """What `trained_components` needs of a checkpoint."""
    return ("ema.superres",)


def trained_components(config: TrainConfig, state: TrainState) -> dict[str, Any]:
    """Averaged weights as the component of a model folder."""
    return {"superres": {"params": state.ema["superres"]}}

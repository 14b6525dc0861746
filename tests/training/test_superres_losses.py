"""Super-resolution losses and their gradients against recorded reference values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_case import GoldenCase, load_unet, quick_jit

from gct_jax.corruption import diffusion, elucidated
from gct_jax.corruption.low_res import noised_low_res
from gct_jax.training.superres_losses import elucidated_loss, superres_loss


@pytest.fixture(scope="module")
def case():
    return GoldenCase("superres")


def training_inputs(case):
    images, low_res, noise, low_res_noise = (
        jnp.asarray(array)
        for array in case.inputs("images", "input_lowres", "noise", "lowres_noise")
    )
    time, low_res_time, text = case.inputs("times", "lowres_time", "text_embeds")
    low_res, level = noised_low_res(2 * low_res - 1, low_res_noise, jnp.repeat(low_res_time, 2))
    conditions = {
        "low_res": low_res,
        "low_res_log_snr": level,
        "text": text,
        "text_mask": np.any(text != 0, axis=-1),
    }
    return 2 * images - 1, conditions, time, noise


def test_inputs_of_the_network_match_golden(case):
    images, conditions, time, noise = training_inputs(case)
    log_snr = diffusion.log_snr_cosine(time)
    case.check("train__unet_x_noisy", diffusion.q_sample(images, noise, log_snr))
    case.check("train__unet_time_cond", log_snr)
    case.check("train__unet_lowres_cond", conditions["low_res"])
    case.check("train__unet_lowres_times", conditions["low_res_log_snr"])
    case.check("p2_weights", diffusion.p2_weight(log_snr))


@pytest.mark.long
def test_losses_and_gradients_match_golden(case):
    images, conditions, time, noise = training_inputs(case)
    unet_apply = load_unet(case, "unets.1.")

    def loss(prediction, objective, gamma):
        return superres_loss(
            lambda x, log_snr, **_: prediction,
            images,
            conditions,
            time=time,
            noise=noise,
            objective=objective,
            p2_loss_weight_gamma=gamma,
        )

    @quick_jit
    def evaluate(unet_apply):
        log_snr = diffusion.log_snr_cosine(time)
        x_t = diffusion.q_sample(images, noise, log_snr)
        prediction, pull_back = jax.vjp(lambda unet: unet(x_t, log_snr, **conditions), unet_apply)
        v, plain_v, eps, plain_eps = (
            jax.value_and_grad(loss)(prediction, objective, gamma)
            for objective in ("v", "noise")
            for gamma in (0.5, 0.0)
        )
        # The reference's gradients were not cleared between its runs, so what was recorded for
        # the noise objective is the sum of three.
        recorded = jnp.stack([v[1], v[1] + plain_v[1] + eps[1]])
        (gradients,) = jax.vmap(pull_back)(recorded)
        return prediction, (v[0], plain_v[0], eps[0], plain_eps[0]), gradients.args[0]["params"]

    prediction, losses, gradients = evaluate(unet_apply)
    case.check("train_v__unet_pred", prediction)
    case.check("train_noise__unet_pred", prediction)
    names = ("train_v__p_losses", "train_v__p_losses_no_p2")
    names += ("train_noise__p_losses", "train_noise__p_losses_no_p2")
    for name, value in zip(names, losses, strict=True):
        case.check(name, value)
    for i, objective in enumerate(("v", "noise")):
        run = jax.tree.map(lambda leaf, i=i: leaf[i], gradients)
        initial, final = run["initial_conv"]["kernel_3"], run["final_conv"]["kernel"]
        case.check(f"train_{objective}__grad__init_conv.convs.0.weight", np.moveaxis(initial, 3, 0))
        case.check(f"train_{objective}__grad__final_conv.weight", np.moveaxis(final, 3, 0))
        # Only the first 16 of the 256 rows were recorded.
        rows = run["conditioning"]["text"]["null_tokens"][None, :16]
        case.check(f"train_{objective}__grad__null_text_embed", rows)


@pytest.mark.parametrize("objective", ["v", "noise", "x_start"])
def test_a_perfect_network_has_no_loss(objective):
    images, noise = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 1))
    log_snr = diffusion.log_snr_linear(jnp.array([0.1, 0.5, 0.9]))
    perfect = diffusion.training_target(objective, images, noise, log_snr)
    loss = superres_loss(
        lambda x, log_snr: perfect,
        images,
        {},
        time=jnp.array([0.1, 0.5, 0.9]),
        noise=noise,
        objective=objective,
        schedule="linear",
    )
    assert loss == 0


def test_self_conditioning_feeds_the_clean_image_and_keeps_the_target():
    images, noise = jax.random.normal(jax.random.key(0), (2, 2, 4, 4, 1))
    time = jnp.array([0.3, 0.6])
    log_snr = diffusion.log_snr_cosine(time)
    perfect = diffusion.velocity(images, noise, log_snr)
    given = []

    def network(x, log_snr, self_cond=None):
        given.append(self_cond)
        return perfect

    loss = superres_loss(
        network,
        images,
        {},
        time=time,
        noise=noise,
        self_condition=jnp.array([True, False]),
    )
    assert loss == 0
    np.testing.assert_allclose(given[1][0], images[0], atol=1e-5)
    np.testing.assert_array_equal(given[1][1], 0)


def test_elucidated_loss_starts_at_one():
    """A network that outputs zero on data of variance sigma_data^2 has unit loss at any sigma."""
    images, noise = jax.random.normal(jax.random.key(2), (2, 64, 16, 16, 1))
    sigma = elucidated.draw_sigma(jax.random.key(3), 64)
    loss = elucidated_loss(
        lambda x, level: jnp.zeros_like(x), 0.5 * images, {}, sigma=sigma, noise=noise
    )
    assert abs(loss - 1) < 0.05

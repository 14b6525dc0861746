"""Super-resolution sampling: recorded reference runs, and independence of batch and devices."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_case import GoldenCase, load_unet, quick_jit
from jax.tree_util import Partial

from gct_jax.config import DiffusionConfig
from gct_jax.corruption import diffusion
from gct_jax.corruption.low_res import noised_low_res, resize_nearest
from gct_jax.sampling.diffusion_solvers import initial_state, solve, solver_step, time_grid
from gct_jax.sampling.settings import SuperresSettings
from gct_jax.sampling.superres import (
    first_then_together,
    make_denoiser,
    slice_noise,
    super_resolve_slices,
)

LOG_SNRS = diffusion.log_snr_cosine(time_grid(25))


@pytest.fixture(scope="module")
def case():
    return GoldenCase("superres")


@pytest.fixture(scope="module")
def unet_apply(case):
    return load_unet(case, "unets.1.")


def conditions_of(low_res, noise, text):
    """Conditions of the U-Net for a low-resolution image in [0, 1], as in a reference sample."""
    low_res, log_snr = noised_low_res(2 * low_res - 1, noise, jnp.full(1, 0.1))
    mask = np.any(text != 0, axis=-1)
    return {"low_res": low_res, "low_res_log_snr": log_snr, "text": text, "text_mask": mask}


@quick_jit
def ancestral_step(unet_apply, state, number, conditions, step_noise):
    return solver_step(
        state,
        number,
        denoise=make_denoiser(unet_apply, conditions, SuperresSettings(DiffusionConfig())),
        step_noise=lambda _: step_noise,
        log_snrs=LOG_SNRS,
        solver="ancestral",
    )


def steps_from(unet_apply, conditions, noise, step_noise):
    """State after each of the 25 steps, driven from the host."""
    state = initial_state(jnp.asarray(noise))
    for number in range(25):
        state = ancestral_step(unet_apply, state, number, conditions, step_noise[number])
        yield state


def test_every_step_of_sampling_matches_golden(case, unet_apply):
    low_res, low_res_noise = case.inputs("sample_lowres", "sample_lowres_noise")
    noise, step_noise = case.inputs("sample_init_noise", "sample_step_noise")
    text = case.arrays["in__text_embeds"][:1]
    conditions = conditions_of(low_res, low_res_noise, text)
    case.check("sample__lowres_cond_img", conditions["low_res"])
    case.check("sample__lowres_log_snr", conditions["low_res_log_snr"])
    states = list(steps_from(unet_apply, conditions, noise, step_noise))
    case.check("sample__x_per_step", np.stack([state.x for state in states]))
    case.check("sample__x0_per_step", np.stack([state.x_start for state in states]))
    case.check("sample__output", (jnp.clip(states[-1].x, -1, 1) + 1) / 2)

    conditions = conditions_of(low_res, 0 * low_res_noise, text)
    *_, silent = steps_from(unet_apply, conditions, 0 * noise, 0 * step_noise)
    case.check("sample_zero__output", (jnp.clip(silent.x, -1, 1) + 1) / 2)


def test_guided_sampling_in_one_loop_matches_golden(case, unet_apply):
    low_res, low_res_noise = case.inputs("sample_lowres", "sample_lowres_noise")
    noise, step_noise = map(jnp.asarray, case.inputs("sample_init_noise", "sample_step_noise"))
    conditions = conditions_of(low_res, low_res_noise, case.arrays["in__text_embeds"][:1])

    guided = SuperresSettings(DiffusionConfig(), guidance=3.0)

    @quick_jit
    def sample(unet_apply):
        return solve(
            noise,
            denoise=make_denoiser(unet_apply, conditions, guided),
            step_noise=lambda step: step_noise[step],
            log_snrs=LOG_SNRS,
            solver="ancestral",
        )

    case.check("sample_cfg__output", (sample(unet_apply) + 1) / 2)


@pytest.mark.long
def test_averaged_weights_of_a_trainer_checkpoint_match_golden():
    case = GoldenCase("sr_trainer")
    unet_apply = load_unet(case)
    x, low_res = case.inputs("x", "lowres_cond_img")
    log_snr, low_res_log_snr, text, mask = case.inputs(
        "time", "lowres_noise_times", "text_embeds", "text_mask"
    )
    conditions = {
        "low_res": low_res,
        "low_res_log_snr": low_res_log_snr,
        "text": text,
        "text_mask": mask,
    }
    output = quick_jit(lambda unet, *args, **options: unet(*args, **options))(
        unet_apply, x, log_snr, **conditions
    )
    case.check("ema_unet_output", output)
    low_res, low_res_noise = case.inputs("sample_lowres", "sample_noise_lowres")
    noise, step_noise = case.inputs("sample_noise_init", "sample_noise_steps")
    conditions = conditions_of(low_res, low_res_noise, text[:1])
    *_, final = steps_from(unet_apply, conditions, noise, step_noise)
    case.check("trainer_sample_output", (jnp.clip(final.x, -1, 1) + 1) / 2)


@pytest.mark.parametrize("objective", ["v", "noise", "x_start"])
@pytest.mark.parametrize("threshold", ["dynamic", "clamp"])
def test_posterior_of_a_network_output_matches_golden(case, objective, threshold):
    output, x_t = case.inputs("model_output", "x_t")
    time, next_time = case.inputs("t", "t_next")
    log_snr, next_log_snr = map(diffusion.log_snr_cosine, (time, next_time))
    x_start = diffusion.predict_x0(objective, x_t, output, log_snr)
    if threshold == "dynamic":
        x_start = diffusion.dynamic_threshold(x_start)
    else:
        x_start = jnp.clip(x_start, -1, 1)
    name = f"pmv_{objective}_{threshold}"
    case.check(f"{name}__threshold_x_start", x_start)
    mean, variance, log_variance = diffusion.posterior(x_start, x_t, log_snr, next_log_snr)
    case.check(f"{name}__mean", mean)
    case.check(f"{name}__variance", variance)
    case.check(f"{name}__log_variance", log_variance)


def blend(bias, x, log_snr, low_res, low_res_log_snr):
    """A stand-in for a network: every pixel depends on all inputs of its own slice."""
    del low_res_log_snr
    return (
        bias
        + 0.3 * x * jnp.tanh(log_snr)[:, None, None, None]
        - low_res.mean((1, 2, 3), keepdims=True)
    )


def blended(low_res, keys, **options):
    """Slices [volumes, depth, 4, 4, 1] enlarged with `blend`."""
    chosen = {
        name: options.pop(name) for name in ("solver", "noise_correlation") if name in options
    }
    settings = SuperresSettings(DiffusionConfig(image_size=8), steps=4, **chosen)
    network = Partial(blend, jnp.float32(0.1))
    return super_resolve_slices(
        network, low_res, None, None, keys, settings, **{"batch": 4, **options}
    )


@pytest.mark.parametrize("solver", ["ancestral", "dpm++"])
@pytest.mark.parametrize("length", [1.0, 2.5])
def test_result_depends_on_neither_batch_size_nor_devices(solver, length):
    low_res = np.linspace(-1, 1, 5 * 4 * 4, dtype=np.float32).reshape(1, 5, 4, 4, 1)
    devices = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    split = jax.sharding.NamedSharding(devices, jax.sharding.PartitionSpec("data"))
    finished = []

    def run(**options):
        keys = jax.random.split(jax.random.key(3), 1)
        return blended(low_res, keys, solver=solver, noise_correlation=length, **options)[0]

    one_by_one = run(batch=1)
    assert one_by_one.shape == (5, 8, 8, 1)
    assert np.abs(one_by_one).max() <= 1
    np.testing.assert_allclose(run(batch=3, on_batch=finished.append), one_by_one, atol=1e-6)
    assert finished == [3, 5]
    np.testing.assert_allclose(run(batch=8, sharding=split), one_by_one, atol=1e-6)
    for at_once in (2, 3):
        finished.clear()
        together = run(batch=1, at_once=at_once, on_batch=finished.append)
        assert finished == [1, 2, 3, 4, 5]
        np.testing.assert_array_equal(together, one_by_one)
    assert np.abs(one_by_one[0] - one_by_one[1]).max() > 0.01


def test_volumes_side_by_side_equal_each_alone():
    """Batches of 4 straddle the volumes of 3 slices; all results are the same to the last bit."""
    low_res = np.random.default_rng(0).uniform(-1, 1, (3, 3, 4, 4, 1)).astype(np.float32)
    keys = jax.random.split(jax.random.key(5), 3)
    finished = []
    together = blended(low_res, keys, noise_correlation=2.0, on_batch=finished.append)
    assert finished == [4, 8, 9]
    for volume in range(3):
        alone = blended(low_res[[volume]], keys[jnp.array([volume])], noise_correlation=2.0)
        np.testing.assert_array_equal(together[volume], alone[0])
    swapped = blended(low_res, keys[::-1], noise_correlation=2.0)
    assert np.abs(swapped[0] - together[0]).max() > 0.01
    np.testing.assert_array_equal(swapped[1], together[1])


@pytest.mark.parametrize("at_once", [1, 3])
def test_no_batch_is_begun_after_a_stop(at_once):
    begun = []

    def work(number):
        begun.append(number)
        threading.Event().wait(0.01)
        return number

    together = first_then_together(work, range(100), at_once)
    assert next(together) == 0
    assert begun == [0]  # alone
    assert next(together) == 1
    together.close()
    assert list(together) == []
    before = len(begun)
    assert before < 50
    assert list(first_then_together(work, range(7), at_once)) == list(range(7))
    assert sorted(begun[before:]) == list(range(7))


def test_at_most_so_many_run_at_once_and_an_error_ends_them():
    running, most, lock = [], [], threading.Lock()

    def work(number):
        with lock:
            running.append(number)
            most.append(len(running))
        threading.Event().wait(0.01)
        with lock:
            running.remove(number)
        if number == 5:
            raise ValueError("five")

    with pytest.raises(ValueError, match="five"):
        list(first_then_together(work, range(200), 3))
    assert max(most) <= 3
    assert len(most) < 50  # the rest was cancelled


def test_each_volume_reads_its_own_prompt():
    def repeat_text(x, log_snr, low_res, low_res_log_snr, text, text_mask):
        return jnp.broadcast_to(
            (text * text_mask[..., None]).sum((1, 2))[:, None, None, None], x.shape
        )

    text = jnp.array([[[0.1], [9.0]], [[0.4], [0.3]]])
    mask = jnp.array([[True, False], [True, True]])
    made = super_resolve_slices(
        repeat_text,
        np.zeros((2, 2, 2, 2, 1)),
        text,
        mask,
        jax.random.split(jax.random.key(0), 2),
        SuperresSettings(DiffusionConfig(image_size=4, objective="x_start"), steps=2),
        batch=3,
    )
    np.testing.assert_allclose(made[0], 0.1, atol=0.02)
    np.testing.assert_allclose(made[1], 0.7, atol=0.02)


def noise_of(key, numbers, stream=1, correlation=1.0):
    keys = jnp.repeat(jax.random.key(key)[None], len(numbers))
    return np.asarray(slice_noise(keys, jnp.array(numbers), stream, (128, 128, 1), correlation))


def test_noise_differs_between_slices_streams_and_keys():
    samples = [noise_of(0, [0, 1, 2]), noise_of(0, [0, 1, 2], 2), noise_of(1, [0, 1, 2])]
    samples = np.concatenate(samples).reshape(9, -1)
    assert np.abs(np.corrcoef(samples) - np.eye(9)).max() < 5 / 128
    np.testing.assert_array_equal(noise_of(0, [2])[0], noise_of(0, [0, 1, 2])[2])


@pytest.mark.parametrize("length", [1.0, 2.0, 3.7])
def test_noise_is_correlated_along_the_depth_as_its_equation_says(length):
    """Mean 0, variance 1 and the covariances that follow from equation (1), over 16,384 pixels."""
    numbers = np.arange(9)
    samples = noise_of(4, list(numbers), correlation=length).reshape(9, -1).astype(np.float64)
    weights = np.zeros((9, 11))  # [slice, field]
    field = (numbers // length).astype(int)
    angle = np.pi / 2 * (numbers / length - field)
    weights[numbers, field], weights[numbers, field + 1] = np.cos(angle), np.sin(angle)
    expected = weights @ weights.T
    np.testing.assert_allclose(np.diag(expected), 1)
    if length == 1:
        np.testing.assert_allclose(expected, np.eye(9), atol=1e-12)
    assert abs(samples.mean(1)).max() < 5 / 128
    np.testing.assert_allclose(samples @ samples.T / 128**2, expected, atol=6 / 128)


def test_nearest_resize_repeats_or_skips_pixels():
    image = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(resize_nearest(image, 2)[0, :, :, 0], [[0, 2], [8, 10]])
    larger = resize_nearest(image, 8)
    np.testing.assert_array_equal(larger[:, ::2, ::2], image)
    np.testing.assert_array_equal(larger[:, 1::2, 1::2], image)


def test_guidance_of_one_equals_the_text_branch():
    text = jnp.ones((2, 3, 4))

    def network(x, log_snr, text, keep_text=None):
        del log_snr
        kept = 1.0 if keep_text is None else keep_text[:, None, None, None]
        return 0.1 * x + kept * text.mean((1, 2))[:, None, None, None]

    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 1))

    def predict(guidance):
        diffusion = DiffusionConfig(objective="x_start", dynamic_thresholding=False)
        settings = SuperresSettings(diffusion, guidance=guidance)
        denoise = make_denoiser(network, {"text": text}, settings)
        return denoise(x, jnp.float32(0), jnp.zeros_like(x))

    np.testing.assert_allclose(predict(1.0), jnp.clip(0.1 * x + 1, -1, 1), atol=1e-6)
    np.testing.assert_allclose(predict(0.5), jnp.clip(0.1 * x + 0.5, -1, 1), atol=1e-6)
    np.testing.assert_allclose(predict(0.0), 0.1 * x, atol=1e-6)

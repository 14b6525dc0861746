"""The study's coupled paths of noise against closed forms, and the command on a tiny model."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from tiny_model import quick_compilation, save_tiny_model

from gct_jax.config import SUPERRES_SOLVERS, DiffusionConfig
from gct_jax.corruption.diffusion import log_snr_cosine
from gct_jax.sampling.diffusion_solvers import time_grid
from gct_jax.sampling.settings import SuperresSettings
from gct_jax.sampling.superres import FIRST_STEP_STREAM, slice_noise, super_resolve_slices
from launch.studies import superres
from launch.studies.superres_measures import (
    Slices,
    agreement,
    depth_agreement,
    gradient_energy,
    solve_on_path,
)

DIFFUSION = DiffusionConfig(image_size=8, objective="x_start", dynamic_thresholding=False)


@pytest.fixture(scope="module", autouse=True)
def compilation():
    with quick_compilation():
        yield


def slices():
    return Slices(
        low_res=jnp.linspace(-1, 1, 2 * 16).reshape(2, 4, 4, 1),
        numbers=jnp.array([4, 5]),
        keys=jax.random.split(jax.random.key(3), 2),
        text=jnp.zeros((2, 1, 1)),
        text_mask=jnp.ones((2, 1), bool),
    )


def constant(level, x, log_snr, **conditions):
    """A network that always finds the same clean image."""
    return jnp.full_like(x, level)


def moving(level, x, log_snr, low_res, **conditions):
    """A network whose clean image depends on everything."""
    return level * jnp.tanh(x) * jax.nn.sigmoid(log_snr)[:, None, None, None] + 0.5 * low_res


def solved(network, solver, steps, fine_steps=16):
    options = {"solver": solver, "guidance": 1.0, "steps": steps, "fine_steps": fine_steps}
    return solve_on_path(Partial(network, jnp.float32(0.3)), slices(), DIFFUSION, **options)


@pytest.mark.parametrize("solver", SUPERRES_SOLVERS)
def test_many_steps_converge_to_the_solution_of_the_same_path(solver):
    exact = solved(moving, solver, 512, 512)
    errors = [np.abs(solved(moving, solver, steps, 512) - exact).max() for steps in (4, 32, 256)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.02


@pytest.mark.parametrize("steps", [16, 8, 4, 2])
def test_ancestral_noise_is_a_wiener_process_in_the_signal_to_noise_ratio(steps):
    """For a constant clean image x_0 the posterior steps add up, up to the noiseless last one, to
    alpha x_0 + alpha / R (W(R_before_last) - W(0)), whatever their number."""
    log_snr = np.asarray(log_snr_cosine(time_grid(16)), np.float64)
    snr = np.exp(log_snr)
    fine = slices()
    total = np.zeros((2, 8, 8, 1))
    for j in range(16 - 16 // steps):
        noise = slice_noise(fine.keys, fine.numbers, FIRST_STEP_STREAM + j, (8, 8, 1))
        total += np.sqrt(snr[j + 1] - snr[j]) * noise
    alpha = np.sqrt(snr[-1] / (1 + snr[-1]))
    expected = alpha * (0.3 + total / snr[-1])
    assert np.abs(total / snr[-1]).max() > 1e-4
    np.testing.assert_allclose(solved(constant, "ancestral", steps), expected, atol=2e-5)


def test_dpm_solver_equals_the_sampler_of_generate():
    fine = slices()
    made = solved(moving, "dpm++", 4)
    for row in range(2):
        expected = super_resolve_slices(
            Partial(lambda level, *args, **more: moving(level, *args, **more), jnp.float32(0.3)),
            np.repeat(fine.low_res[row][None, None], 6, axis=1),
            None,
            None,
            fine.keys[row][None],
            SuperresSettings(DIFFUSION, steps=4, solver="dpm++"),
        )[0, int(fine.numbers[row])]
        np.testing.assert_allclose(made[row], expected, atol=1e-5)


def test_steps_must_divide_the_fine_ones():
    with pytest.raises(ValueError, match="3 steps do not divide 16"):
        solved(constant, "dpm++", 3)


def test_measures_of_known_images():
    ramp = np.broadcast_to(np.arange(8.0) * 3, (2, 8, 8))
    assert gradient_energy(ramp) == 9
    found = agreement(ramp, ramp + 20)
    assert found["rmse_hu"] == 20 and found["sharpness"] == 1
    assert found["psnr"] == pytest.approx(40)
    volume = np.arange(3.0)[None, :, None, None] * 10 + ramp[0]
    flicker = np.array([0.0, 4.0, 0.0])[None, :, None, None]
    found = depth_agreement(volume, volume + flicker)
    assert found["step_rmse_hu"] == pytest.approx(4)
    assert found["step_energy"] == pytest.approx((14**2 + 6**2) / 200)
    assert found["step_kept"] == pytest.approx(1)
    smeared = depth_agreement(volume, 0.25 * volume)
    assert smeared["step_kept"] == pytest.approx(0.25)
    assert depth_agreement(volume, volume + 50)["step_rmse_hu"] == pytest.approx(0, abs=1e-9)


@pytest.mark.long
@pytest.mark.slow
def test_command_writes_tables_curves_and_numbers(tmp_path, monkeypatch, capsys):
    model = save_tiny_model(tmp_path / "tiny")
    monkeypatch.setattr(superres, "NOISE_CORRELATIONS_MM", (0.0, 30.0))
    monkeypatch.setattr(superres, "STEPS", (2, 4, 3))
    monkeypatch.setattr("gct_jax.runtime.compilation_cache.enable_compilation_cache", lambda: None)
    arguments = ["--model", str(model), "--out", str(tmp_path / "out"), "--cases", "1"]
    sizes = ["--fine-steps", "8", "--depth-slices", "3"]
    assert superres.main([*arguments, *sizes]) == 0
    text = (tmp_path / "out" / "superres_study.md").read_text()
    assert text.strip() in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "superres_study.json").read_text())
    assert [(row["solver"], row["steps"]) for row in found["solvers"]] == [
        (solver, steps) for solver in SUPERRES_SOLVERS for steps in (2, 4, 8)
    ]
    for row in found["solvers"]:
        assert (row["own_rmse_hu"] == 0) == (row["steps"] == 8)
    independent, turning = found["noise"]
    assert independent["step_rmse_hu"] != turning["step_rmse_hu"]
    assert (tmp_path / "out" / "superres_study.png").stat().st_size > 1000


def test_impossible_sizes_are_refused(tmp_path, capsys):
    model = save_tiny_model(tmp_path / "tiny")
    assert superres.main(["--model", str(model), "--depth-slices", "6"]) == 2
    assert "have 5 slices" in capsys.readouterr().err


@pytest.mark.parametrize("fine_steps", ["0", "7"])
def test_fine_steps_that_no_count_divides_are_refused(fine_steps, capsys):
    with pytest.raises(SystemExit) as stop:
        superres.main(["--fine-steps", fine_steps])
    assert stop.value.code == 2
    assert "--fine-steps must be a multiple of one of 2, 4" in capsys.readouterr().err

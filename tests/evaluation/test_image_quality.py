import numpy as np
import pytest

from gct_jax.evaluation.image_quality import psnr, ssim


def test_psnr_of_a_constant_error():
    reference = np.zeros((8, 8, 8))
    assert psnr(reference, reference + 20.0) == pytest.approx(40.0)  # 20 log10(2000 / 20)
    assert psnr(reference, reference) == float("inf")


@pytest.mark.parametrize("depth", [3, 6, 9])
def test_ssim_of_a_shift_in_brightness_has_a_closed_form(depth):
    """Windows of constant volumes have no variance, so only the luminance term is left."""
    reference = np.full((depth, 9, 9), 100.0)
    other = np.full((depth, 9, 9), 300.0)
    c1 = (0.01 * 2000.0) ** 2
    expected = (2 * 100 * 300 + c1) / (100**2 + 300**2 + c1)
    assert ssim(reference, other) == pytest.approx(expected, abs=1e-6)


def test_ssim_falls_with_noise():
    rng = np.random.default_rng(0)
    reference = rng.normal(0, 300, (16, 16, 16))
    noise = rng.normal(0, 1, reference.shape)
    values = [ssim(reference, reference + sigma * noise) for sigma in (0.0, 50.0, 400.0)]
    assert values[0] == pytest.approx(1.0)
    assert values[0] > values[1] > values[2]

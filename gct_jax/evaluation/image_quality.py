"""Agreement of two volumes in HU.

    PSNR = 20 log10(R / rmse)                                                              (1)

with R the width of the intensity range. SSIM is that of Wang et al. (2004), taken over 3-D
windows (2-D for single slices), with the same R.
"""

import numpy as np
from skimage.metrics import structural_similarity

RANGE_HU = 2000.0  # models work in [-1000, 1000] HU
WINDOW = 7


def psnr(reference_hu: np.ndarray, other_hu: np.ndarray, data_range: float = RANGE_HU) -> float:
    """Equation (1) in dB over all voxels; infinite for equal arrays of any shape."""
    error = np.mean(np.square(np.asarray(reference_hu, np.float64) - other_hu))
    return float("inf") if error == 0 else float(10 * np.log10(data_range**2 / error))


def ssim(reference_hu: np.ndarray, other_hu: np.ndarray, data_range: float = RANGE_HU) -> float:
    """Mean structural similarity over cubic windows of 7 voxels, or of the largest odd number that
    fits into a thinner array.

    Args:
      reference_hu: [depth, height, width] or [height, width], at least 3 along every axis.
      other_hu: the same shape.
    """
    reference = np.asarray(reference_hu, np.float64)
    other = np.asarray(other_hu, np.float64)
    window = min(WINDOW, (min(reference.shape) - 1) | 1)
    return float(structural_similarity(reference, other, data_range=data_range, win_size=window))

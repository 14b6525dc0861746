"""Detectors of the 18 findings that read CT numbers and geometry; nothing generated taught them.

A detector is a weighted sum of the measurements z of a chest (`chest_measurements`), each in
standard deviations from its mean and clipped to four of them:

    score = w . [z_right + z_left, |z_left - z_right|, z_midline] + b                      (1)
    left_minus_right = v . (z_left - z_right)                                              (2)

w, b and v are logistic regressions (`detector_fit`, `launch.demo.fit_detectors`) on renderings of
phantoms that neither training nor evaluation uses. A score has no unit beyond its order. Exchange
the sides' measurements and (1) stays as it is while (2) changes its sign.
"""

import dataclasses
import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines.phantom.chest_measurements import Measurements, measure
from data_pipelines.phantom.chest_regions import read_chest
from data_pipelines.phantom.findings import FINDINGS, NO_SIDE, PLACES

SIDED = tuple(name for name in PLACES if name not in NO_SIDE)
SHIPPED = Path(__file__).with_name("detectors.npz")
CLIP = 4.0


@dataclasses.dataclass(frozen=True)
class Detection:
    """Scores of one volume.

    Attributes:
      score: for each of `FINDINGS`, higher means more likely present.
      left_minus_right: for each of `SIDED`, evidence on the left minus that on the right.
    """

    score: dict[str, float]
    left_minus_right: dict[str, float]


class Weights(NamedTuple):
    """Equations (1) and (2), float32; p measurements in (1), m in (2).

    Attributes:
      presence_mean, presence_spread: [p].
      presence: [18, p], w in the order of `FINDINGS`.
      bias: [18], b.
      side_spread: [m]; the mean is 0.
      side: [11, m], v in the order of `SIDED`.
    """

    presence_mean: np.ndarray
    presence_spread: np.ndarray
    presence: np.ndarray
    bias: np.ndarray
    side_spread: np.ndarray
    side: np.ndarray


def detect(volume_hu: np.ndarray, spacing_mm: tuple[float, float, float]) -> Detection:
    """Read all findings from a volume.

    Args:
      volume_hu: [depth, height, width] in HU; axes feet to head, front to back, right to left.
      spacing_mm: along the same axes; any grid whose field of view holds the chest.
    """
    return detection(*read(load_weights(), measure(read_chest(volume_hu, spacing_mm))))


def detection(scores: np.ndarray, differences: np.ndarray) -> Detection:
    """What `read` says of one volume, by name."""
    return Detection(
        dict(zip(FINDINGS, scores.tolist(), strict=True)),
        dict(zip(SIDED, differences.tolist(), strict=True)),
    )


def read(weights: Weights, measured: Measurements) -> tuple[np.ndarray, np.ndarray]:
    """Equations (1) and (2): scores [..., 18] and left minus right [..., 11]."""
    present = standardise(both_sides(measured), weights.presence_mean, weights.presence_spread)
    difference = standardise(measured.left - measured.right, 0.0, weights.side_spread)
    return present @ weights.presence.T + weights.bias, difference @ weights.side.T


def both_sides(measured: Measurements) -> np.ndarray:
    """The measurements of equation (1), float32 [..., p]: unchanged when sides are exchanged."""
    right, left, midline = measured
    return np.concatenate([right + left, np.abs(left - right), midline], -1)


def standardise(values: np.ndarray, mean: np.ndarray | float, spread: np.ndarray) -> np.ndarray:
    """Standard deviations from the mean, clipped."""
    return np.clip((values - mean) / spread, -CLIP, CLIP)


@functools.lru_cache(maxsize=1)
def load_weights() -> Weights:
    """Weights beside this file."""
    with np.load(SHIPPED) as arrays:
        return Weights(**{name: arrays[name] for name in Weights._fields})

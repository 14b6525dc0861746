"""What can be measured in a chest CT: statistics of CT numbers over regions of the anatomy.

The regions come from the geometry of `chest_regions`. Most exist on both sides, mirrored, and are
measured alike; the others lie in the midline. Every statistic is a plain one: percentiles, means,
the share of voxels above a CT number, the brightest voxels, the unrest within 3 x 3 pixels, and
what is smaller than about 15 mm (`Chest.detail`).
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from data_pipelines.phantom.chest_regions import SIDES, Chest

PERCENTILES = (3, 10, 25, 50, 75, 90, 97)
# Between air, emphysema, lung, ground glass, fat, water, soft tissue and calcium.
ABOVE_HU = (-940, -900, -850, -800, -740, -640, -500, -330, -150, -20, 27, 60, 120)
HAZE_HU, DENSE_LUNG_HU, HAZE_SPREAD_HU = (-640, -330), -350, 110
FEWEST = 4  # voxels; a smaller region counts as missing
MISSING_HU = -850.0

# Places of lymph nodes in mm; those with a side as on the left, x is mirrored.
MEDIASTINAL_MM = ((-20, 6, 60), (-2, 2, 50), (24, -4, 44), (14, -38, 62), (4, 28, 26))
AXILLARY_MM = ((128, -6, 88), (124, 12, 70), (132, 4, 104))
HILAR_MM = ((46, 6, 12), (42, 30, 18), (52, 20, -6))
NODE_HU = (-150, 80)  # fat to soft tissue
UPPER_LOBES = (0, 1, 3)  # indices into `lungs.LOBES`, the middle lobe counted among them


class Measurements(NamedTuple):
    """Measurements of one chest, float32.

    Attributes:
      right, left: [m], the same ones of either side.
      midline: [k].
    """

    right: np.ndarray
    left: np.ndarray
    midline: np.ndarray


def measure(chest: Chest) -> Measurements:
    """Everything, finite for any volume."""
    textures = _textures(chest)
    right, left = (_measure_side(chest, side, textures) for side in SIDES)
    return Measurements(right, left, _measure_midline(chest))


def _measure_side(chest: Chest, side: str, textures: np.ndarray) -> np.ndarray:
    parts = []
    for region in _lung_regions(chest, side):
        parts += [_levels(chest.hu, region), _texture(textures, region)]
    sign = -1 if side == "right" else 1
    for centres, radius in ((AXILLARY_MM, 12), (HILAR_MM, 11)):
        for x, y, z in centres:
            parts.append(_node(chest, (sign * x, y, z), radius))
    parts.append(np.array([chest.dome_mm[SIDES.index(side)]]))
    return np.concatenate(parts).astype(np.float32)


def _measure_midline(chest: Chest) -> np.ndarray:
    parts = [np.array([chest.heart_ratio])]
    for region in _midline_regions(chest):
        parts.append(_levels(chest.hu, region))
    parts += [_node(chest, centre, 10) for centre in MEDIASTINAL_MM]
    return np.concatenate(parts).astype(np.float32)


# Regions


def _lung_regions(chest: Chest, side: str) -> list[np.ndarray]:
    """Eight regions where aerated lung is expected, each bool [depth, height, width]."""
    here, points = chest.side(side), chest.points
    upper = np.isin(chest.lobe, UPPER_LOBES)
    cavity = (chest.wall < -5) & (chest.heart > 8) & (chest.above_dome > 7)
    # Away from the borders and from the vessels and airways of the hilum
    inner = (chest.wall < -8) & (chest.heart > 14) & (chest.above_dome > 14) & (chest.hilum > 42)
    airways = (chest.wall < -3) & (chest.heart > 10) & (chest.above_dome > 8)
    airways &= _between(chest.hilum, (15, 40))
    parts = [
        here & region & lobes
        for region in (inner, airways, cavity & ~inner)
        for lobes in (upper, ~upper)
    ]
    # Above the average diaphragm, into which the real one rises when lung collapses
    average_dome = chest.above_dome + chest.dome_mm[SIDES.index(side)]
    parts.append(here & (chest.wall < -5) & (chest.heart > 8) & _between(average_dome, (0, 30)))
    # Along the posterior wall, where fluid gathers
    low = _between(chest.wall, (-24, -4)) & (points.y > 20) & _between(points.z, (-95, -35))
    parts.append(here & low & (chest.above_dome > 4))
    return parts


def _midline_regions(chest: Chest) -> list[np.ndarray]:
    """Heart, aorta and the space behind the heart, each bool [depth, height, width]."""
    points, behind = chest.points, chest.points.y - chest.spine_y
    above = (chest.above_dome > 8) & (points.y < 35)
    shells = [
        above & _between(chest.heart, limits) for limits in ((-5, 5), (5, 12), (12, 20), (20, 28))
    ]
    aorta = (chest.aorta < 5) & _between(points.z, (-130, 70)) & (chest.heart > 6)
    coronaries = _between(chest.heart, (-10, 8)) & _between(points.z, (-70, 25))
    coronaries &= (chest.aorta > 6) & _between(points.y, (-75, 10)) & (np.abs(points.x) < 75)
    hiatus = (np.abs(points.x - 4) < 12) & _between(behind, (-70, -30))
    return [
        np.ones(chest.hu.shape, bool),
        chest.heart < -8,
        *shells,
        coronaries,
        aorta & (behind < -12),
        hiatus & _between(points.z, (-105, -35)),
    ]


# Statistics


def _levels(hu: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Percentiles, mean, spread, shares above `ABOVE_HU`, and the brightest voxels."""
    values = hu[region]
    if values.size < FEWEST:
        values = np.full(FEWEST, MISSING_HU)
    shares = (values[:, None] > np.array(ABOVE_HU)).mean(0)
    brightest = [_highest(values, count).mean() for count in (4, 8)]
    return np.array(
        [*np.percentile(values, PERCENTILES), values.mean(), values.std(), *shares, *brightest]
    )


def _textures(chest: Chest) -> np.ndarray:
    """[5, ...]: detail, spots of a voxel or two, crowded streaks, local mean and spread."""
    mean, spread = chest.local
    detail = chest.detail
    spots = ndimage.gaussian_filter(detail, (0.4, 0.6, 0.6))
    streaks = ndimage.gaussian_filter(np.clip(np.abs(detail), 0, 400), (1.2, 2.2, 2.2))
    return np.stack([detail, spots, streaks, mean, spread])


def _texture(textures: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Statistics of `_textures` within a region."""
    if region.sum() < FEWEST:
        return np.zeros(15)
    detail, spots, streaks, mean, spread = textures[:, region]
    hazy = _between(mean, HAZE_HU) & (spread < HAZE_SPREAD_HU)
    return np.array(
        [
            *np.percentile(detail, (2, 10, 90, 97)),
            detail.std(),
            _highest(detail, 4).mean(),
            spots.max(),
            _highest(spots, 5).mean(),
            streaks.max(),
            spread.mean(),
            np.percentile(spread, 90),
            mean.max(),
            (mean > DENSE_LUNG_HU).mean(),
            hazy.mean(),
            np.subtract(*np.percentile(mean, (75, 25))),
        ]
    )


def _node(chest: Chest, centre: tuple[float, float, float], radius: float) -> np.ndarray:
    """Mean and spread between fat and soft tissue in a ball about a point."""
    pairs = zip(chest.points, centre, strict=True)
    near = sum((axis - c) ** 2 for axis, c in pairs) < radius**2
    tissue = np.clip(chest.hu[near], *NODE_HU)
    return np.array([tissue.mean(), tissue.std()]) if tissue.size else np.zeros(2)


def _highest(values: np.ndarray, count: int) -> np.ndarray:
    count = min(count, values.size)
    return np.partition(values, -count)[-count:]


def _between(values: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    return (values > limits[0]) & (values < limits[1])

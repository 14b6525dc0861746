"""Scores of the 18 findings from CT numbers and geometry alone; no network, nothing learnt.

Each detector measures what defines its finding: fluid where the posterior lung should be, the
width of the heart, calcium on the wall of the aorta, blackness or unrest of the lungs. Findings
with a side are measured on both; the score is that of the worse side, and the difference says
which one it is. A score has no unit: only its order matters. Thresholds and regions were chosen on
rendered phantoms and on CT-ViT's reconstructions of them, of seeds that no evaluation uses.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy import ndimage

from data_pipelines.phantom.chest_regions import SIDES, Chest, read_chest
from data_pipelines.phantom.findings import FINDINGS

FLUID_HU, SOFT_HU, DENSE_LUNG_HU = (-20.0, 27.0), -150.0, -350.0
LOBES_OF = {"right": (0, 1, 2), "left": (3, 4)}


@dataclasses.dataclass(frozen=True)
class Detection:
    """Scores of one volume.

    Attributes:
      score: for each of `FINDINGS`, higher means more likely present.
      left_minus_right: for findings with a side, evidence on the left minus that on the right.
    """

    score: dict[str, float]
    left_minus_right: dict[str, float]


def detect(volume_hu: np.ndarray, spacing_mm: tuple[float, float, float]) -> Detection:
    """Measure all findings.

    Args:
      volume_hu: [depth, height, width] in HU; axes feet to head, front to back, right to left.
      spacing_mm: along the same axes; any grid whose field of view holds the chest.
    """
    chest = read_chest(volume_hu, spacing_mm)
    scores = {name: float(measure(chest)) for name, measure in WHOLE.items()}
    difference = {}
    for name, measure_side in SIDED.items():
        right, left = (float(measure_side(chest, side)) for side in SIDES)
        scores[name], difference[name] = max(right, left), left - right
    scores["Lymphadenopathy"] = max(scores["Lymphadenopathy"], _mediastinal_nodes(chest))
    return Detection({name: scores[name] for name in FINDINGS}, difference)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else 0.0


def _highest(values: np.ndarray, count: int) -> float:
    """Mean of the `count` largest values."""
    count = min(count, values.size)
    return float(np.partition(values, -count)[-count:].mean()) if count else -1000.0


def _between(values: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    return (values > limits[0]) & (values < limits[1])


# Heart, vessels, mediastinum


def _medical_material(chest: Chest) -> float:
    """Metal exceeds bone."""
    return _highest(chest.hu.ravel(), 5)


def _aortic_calcium(chest: Chest) -> float:
    """Brightest voxels along the descending aorta and the arch, in front of the spine."""
    points = chest.points
    near = (chest.aorta < 5) & _between(points.z, (-130, 70))
    near &= (points.y < chest.spine_y - 12) & (chest.heart > 6)
    return _highest(chest.hu[near], 4)


def _coronary_calcium(chest: Chest) -> float:
    """Brightest voxels of the heart's surface over the blood of its chambers."""
    points = chest.points
    surface = _between(chest.heart, (-10, 8)) & _between(points.z, (-70, 25))
    surface &= (chest.aorta > 6) & _between(points.y, (-75, 10)) & (np.abs(points.x) < 75)
    return _highest(chest.hu[surface], 8) - float(np.percentile(chest.hu[chest.heart < -8], 90))


def _cardiomegaly(chest: Chest) -> float:
    return chest.heart_ratio


def _pericardial_fluid(chest: Chest) -> float:
    """Share of water density in the shell about the heart, where fat and lung should be, and the
    width of the silhouette, which the fluid adds to."""
    shell = _between(chest.heart, (-5, 28)) & (chest.above_dome > 8) & (chest.points.y < 35)
    return _mean(_between(chest.hu, (-15, 25))[shell]) + 0.15 * chest.heart_ratio


def _hiatal_hernia(chest: Chest) -> float:
    """Gas and fluid in the midline between heart and spine."""
    points = chest.points
    behind = points.y - chest.spine_y
    region = (np.abs(points.x - 4) < 12) & _between(behind, (-70, -30))
    region &= _between(points.z, (-105, -35))
    return _mean(chest.hu[region] < -200)


def _stations(chest: Chest, centres: tuple, radius: float) -> list[np.ndarray]:
    """Voxels of balls about points."""
    points = chest.points
    return [
        (points.x - x) ** 2 + (points.y - y) ** 2 + (points.z - z) ** 2 < radius**2
        for x, y, z in centres
    ]


def _mediastinal_nodes(chest: Chest) -> float:
    """Soft tissue instead of fat between the great vessels."""
    places = _stations(chest, ((-20, 6, 60), (-2, 2, 50), (24, -4, 44), (14, -38, 62)), 10)
    tissue = float(np.mean([_mean(np.clip(chest.hu, -130, 60)[place]) for place in places]))
    return (tissue - MEDIASTINAL_HU[0]) / MEDIASTINAL_HU[1]


def _side_nodes(chest: Chest, side: str) -> float:
    """Soft tissue in the fat of the axilla or around the hilum, in standard deviations."""
    sign = -1 if side == "right" else 1
    axilla = ((128, -6, 88), (124, 12, 70), (132, 4, 104))
    hilum = ((46, 6, 12), (42, 30, 18), (52, 20, -6))
    scores = []
    for centres, radius, (mean, spread) in ((axilla, 12, AXILLARY_HU), (hilum, 11, HILAR_HU)):
        places = _stations(chest, tuple((sign * x, y, z) for x, y, z in centres), radius)
        tissue = float(np.mean([_mean(np.clip(chest.hu, -150, 60)[place]) for place in places]))
        scores.append((tissue - mean) / spread)
    return max(scores)


# Mean and spread in patients without enlarged nodes.
MEDIASTINAL_HU, AXILLARY_HU, HILAR_HU = (-20.0, 25.0), (-85.0, 15.0), (-80.0, 40.0)


# Pleura and lungs


def _cavity(chest: Chest) -> np.ndarray:
    """Where aerated lung is expected, well inside its borders."""
    return (chest.wall < -5) & (chest.heart > 8) & (chest.above_dome > 7)


def _inner_lung(chest: Chest) -> np.ndarray:
    """Lung away from its borders and from the vessels and airways of the hila."""
    inside = (chest.wall < -8) & (chest.heart > 14) & (chest.above_dome > 14)
    return inside & (chest.hilum > 42)


def _pleural_fluid(chest: Chest, side: str) -> float:
    """Share without air of the lowest strip along the posterior wall."""
    points = chest.points
    strip = chest.side(side) & _between(chest.wall, (-24, -4)) & (points.y > 35)
    strip &= _between(points.z, (-90, -40)) & (chest.above_dome > 4)
    filled = chest.hu[strip] > -200
    fluid = _between(chest.hu, FLUID_HU)[strip]
    return _mean(filled) + _mean(fluid)


def _solid(chest: Chest, side: str) -> np.ndarray:
    """Airless lung denser than fluid."""
    mean, spread = chest.local
    return _cavity(chest) & chest.side(side) & (chest.hu > SOFT_HU) & (mean > 28) & (spread < 60)


def _consolidation(chest: Chest, side: str) -> float:
    """Share of dense lung, the largest of the lobes, and the extent of the largest solid region."""
    mean, _ = chest.local
    share = _lobe_share(chest, side, _inner_lung(chest), mean > DENSE_LUNG_HU)
    return share + _largest_solid(chest, side) / 40


def _largest_solid(chest: Chest, side: str) -> float:
    """Height in slices and size of the largest airless region."""
    labels, count = ndimage.label(ndimage.binary_opening(_solid(chest, side), np.ones((1, 2, 2))))
    if not count:
        return 0.0
    largest = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    return float(largest.any((1, 2)).sum() + 0.01 * largest.sum())


def _atelectasis(chest: Chest, side: str) -> float:
    """Share without air of what is lung in the average patient next to the diaphragm: the
    collapsed lung, and the diaphragm that has risen into its place."""
    average_dome = chest.above_dome + chest.dome_mm[SIDES.index(side)]
    base = chest.side(side) & (chest.wall < -5) & (chest.heart > 8)
    return _mean(chest.hu[base & _between(average_dome, (0, 30))] > -300)


def _opacity(chest: Chest, side: str) -> float:
    """Share of homogeneous lung between air and soft tissue."""
    mean, spread = chest.local
    hazy = _between(mean, (-640, -330)) & (spread < 110)
    return _mean(hazy[_cavity(chest) & chest.side(side)])


def _lobe_share(chest: Chest, side: str, where: np.ndarray, marked: np.ndarray) -> float:
    """Largest share of marked voxels in a lobe of the side."""
    return max(_mean(marked[where & (chest.lobe == lobe)]) for lobe in LOBES_OF[side])


def _emphysema(chest: Chest, side: str) -> float:
    """Share of lung near the density of air, the largest of the lobes."""
    return _lobe_share(
        chest, side, _cavity(chest) & _between(chest.hilum, (15, 75)), chest.hu < -905
    )


def _septal_thickening(chest: Chest, side: str) -> float:
    """Share of lung denser than normal, away from the hila."""
    return _lobe_share(chest, side, _inner_lung(chest), _between(chest.hu, (-740, -250)))


def _mosaic(chest: Chest) -> float:
    """Spread of lung density between the quartiles, the median of the lobes."""
    lung = _cavity(chest) & chest.air
    lobes = [chest.hu[lung & (chest.lobe == lobe)] for lobe in range(5)]
    spreads = [np.subtract(*np.percentile(hu, (75, 25))) for hu in lobes if hu.size > 10]
    return float(np.median(spreads)) if spreads else 0.0


def _nodule(chest: Chest, side: str) -> float:
    """Brightest spot of the size of a voxel or two in the outer lung."""
    spot = ndimage.gaussian_filter(chest.detail, (0.4, 0.6, 0.6))
    return _highest(spot[_inner_lung(chest) & chest.side(side)], 1)


def _fibrosis(chest: Chest, side: str) -> float:
    """Streaks crowded in one place of the outer lung."""
    inside = (_inner_lung(chest) & chest.side(side)).astype(np.float32)
    streaks = np.clip(np.abs(chest.detail), 0, 400)
    reach = (1.2, 2.2, 2.2)
    share = ndimage.gaussian_filter(inside, reach)
    crowd = ndimage.gaussian_filter(streaks * inside, reach) / np.maximum(share, 0.1)
    return _highest(crowd[(share > 0.25) & (inside > 0)], 5)


def _airways(chest: Chest, side: str) -> np.ndarray:
    """Lung round the hilum."""
    return (
        chest.side(side)
        & (chest.wall < -3)
        & (chest.heart > 10)
        & _between(chest.hilum, (15, 40))
        & (chest.above_dome > 8)
    )


def _thick_airways(chest: Chest, side: str) -> float:
    """Bright detail round the hilum."""
    return _lobe_share(chest, side, _airways(chest, side), chest.detail > 150)


def _wide_airways(chest: Chest, side: str) -> float:
    """Dark lumens round the hilum, compared with the rest of the lobe's lung."""
    darkest = [
        -float(np.percentile(chest.hu[here], 3))
        for lobe in LOBES_OF[side]
        if (here := _airways(chest, side) & (chest.lobe == lobe)).sum() > 7
    ]
    return max(darkest, default=0.0)


WHOLE: dict[str, Callable[[Chest], float]] = {
    "Medical material": _medical_material,
    "Arterial wall calcification": _aortic_calcium,
    "Cardiomegaly": _cardiomegaly,
    "Pericardial effusion": _pericardial_fluid,
    "Coronary artery wall calcification": _coronary_calcium,
    "Hiatal hernia": _hiatal_hernia,
    "Mosaic attenuation pattern": _mosaic,
}
SIDED: dict[str, Callable[[Chest, str], float]] = {
    "Lymphadenopathy": _side_nodes,
    "Emphysema": _emphysema,
    "Atelectasis": _atelectasis,
    "Lung nodule": _nodule,
    "Lung opacity": _opacity,
    "Pulmonary fibrotic sequela": _fibrosis,
    "Pleural effusion": _pleural_fluid,
    "Peribronchial thickening": _thick_airways,
    "Consolidation": _consolidation,
    "Bronchiectasis": _wide_airways,
    "Interlobular septal thickening": _septal_thickening,
}

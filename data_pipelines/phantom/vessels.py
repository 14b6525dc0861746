"""Great vessels, airways and the vessels of the lungs as capsules.

A lung tree fills its lobe by halving: from a root the branch runs part of the way to the mean of
the points it has to reach, splits them across their longest extent, and recurs. Radii follow
Murray's law: the cubes of the daughters' radii add up to the cube of the parent's.
"""

import numpy as np

from data_pipelines.phantom.lungs import LOBES, lobe_weights, lung_distance, profiles_at
from data_pipelines.phantom.shapes import ellipsoid

ARTERY_LEAVES, VEIN_LEAVES, AIRWAY_LEAVES = 24, 16, 3
AIRWAY_BRANCHES = 24  # per lobe, unused ones have radius 0
CARINA = np.array([-2.0, 20.0, 44.0])
# Roots at the hila per lobe: airway, artery, vein.
ROOTS = {
    "right upper": ((-36, 20, 34), (-38, 8, 28), (-32, -4, 12)),
    "right middle": ((-40, 10, -8), (-44, 4, 0), (-34, -6, -4)),
    "right lower": ((-40, 30, -14), (-48, 26, -4), (-30, 26, -22)),
    "left upper": ((46, 14, 16), (46, 18, 28), (36, -4, 12)),
    "left lower": ((42, 34, -6), (50, 32, 4), (32, 28, -22)),
}


class _Cloud:
    """Points with x, y, z as `lungs` wants them."""

    def __init__(self, points: np.ndarray):
        self.x, self.y, self.z = points.T


def polyline(points, radii) -> tuple[np.ndarray, np.ndarray]:
    """Capsules along points [n + 1, 3] with one radius each [n]: ends [n, 6], radii [n]."""
    points = np.asarray(points, float)
    return np.concatenate([points[:-1], points[1:]], axis=1), np.asarray(radii, float)


def sample_great_vessels(patient, rng: np.random.Generator, age: int) -> dict[str, np.ndarray]:
    """aorta_ends [12, 6], aorta_radii [12]; great_ends [n, 6], great_radii [n]: other vessels."""
    top = float(patient["heart"][1][2] + 0.5 * patient["heart"][1][5])
    wide = rng.normal(1.0, 0.06) * (0.86 + 0.0028 * age)
    spine = profiles_at(patient, np.array([58.0, 30.0, 0.0, -30.0, -60.0, -100.0, -160.0])).spine_y
    arch = rng.normal(64, 4)
    aorta = [
        (4, -22, top - 26),
        (-6, -28, top),
        (-14, -30, 36),
        (-8, -24, arch - 6),
        (4, -10, arch),
        (16, 8, arch),
        (23, spine[0] - 30, arch - 5),
        (24, spine[1] - 20, 36),
        (22, spine[2] - 21, 0),
        (20, spine[3] - 22, -30),
        (16, spine[4] - 24, -60),
        (9, spine[5] - 26, -100),
        (4, spine[6] - 27, -165),
    ]
    ends, radii = polyline(
        aorta, wide * np.array([16, 16, 15, 14.5, 14, 13.5, 13, 12.5, 12, 12, 11.5, 11])
    )
    parts = [
        ([(-26, -12, top - 20), (-26, -14, 30), (-24, -16, 76)], (10, 9)),  # superior vena cava
        ([(-20, 0, -50), (-22, 6, -90), (-20, 16, -165)], (12, 12)),  # inferior vena cava
        (
            [(-24, -16, 76), (-34, -14, 110), (-40, -6, 150)],
            (7.5, 6.5),
        ),  # right brachiocephalic vein
        ([(-22, -18, 78), (10, -26, 92), (36, -14, 116), (40, -4, 150)], (7, 7, 6)),
        ([(2, -14, arch + 4), (-12, -4, 100), (-26, 2, 150)], (6.5, 5)),  # brachiocephalic artery
        ([(12, 0, arch + 4), (18, 4, 104), (24, 4, 150)], (4, 4)),  # left carotid
        ([(20, 12, arch + 4), (30, 20, 100), (46, 18, 128), (80, 0, 140)], (5, 5, 4.5)),
        ([(16, -42, top - 28), (17, -36, top), (18, -22, 24)], (14, 14)),  # pulmonary trunk
        ([(18, -20, 24), (0, -2, 20), (-24, 6, 16), (-40, 10, 14)], (11, 10, 9)),  # right artery
        ([(18, -20, 24), (30, 2, 30), (40, 18, 26), (48, 26, 10)], (11, 10, 9)),  # left artery
        ([(-40, 10, 14), (-46, 24, 0)], (8,)),
        ([(-32, -4, 12), (-22, 2, -8)], (6,)),
        ([(-30, 26, -22), (-14, 16, -22)], (6,)),
        ([(36, -4, 12), (18, 4, -8)], (6,)),
        ([(32, 28, -22), (10, 16, -22)], (6,)),
        ([(-10, 34, -150), (-9, 38, 40), (-14, 30, 52), (-22, 0, 50)], (3, 3, 3)),  # azygos
    ]
    lines = [polyline(*part) for part in parts]
    return {
        "aorta_ends": ends,
        "aorta_radii": radii,
        "great_ends": np.concatenate([line[0] for line in lines]),
        "great_radii": np.concatenate([line[1] for line in lines]) * rng.normal(1, 0.05),
    }


def sample_lung_trees(patient, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Vessels and airways.

    Returns:
      vessel_ends [n, 6], vessel_radii [n]; airway_ends [m, 6], airway_radii [m, 2] (lumen, outer
      wall), airway_lobe [m] (index of `LOBES`, -1 central).
    """
    targets = _targets(patient, rng)
    ends: list[np.ndarray] = []
    radii: list[float] = []
    airway_ends = [polyline([(0, 10, 165), (0, 14, 100), CARINA], (9, 9))[0]]
    central = [9.0, 9.0]
    lobes = [-1, -1]
    hubs = {"right": np.array([-30.0, 22.0, 20.0]), "left": np.array([38.0, 26.0, 8.0])}
    for hub in hubs.values():
        airway_ends.append(polyline([CARINA, hub], (6.5,))[0])
        central.append(6.5)
        lobes.append(-1)
    for index, lobe in enumerate(LOBES):
        airway, artery, vein = (np.array(root, float) for root in ROOTS[lobe])
        points = targets[index]
        tree: list[tuple[np.ndarray, np.ndarray, int]] = []
        _grow(artery, points[:ARTERY_LEAVES], rng, tree)
        _grow(vein, points[ARTERY_LEAVES:], rng, branches := [])
        for first, second, leaves in tree + branches:
            ends.append(np.concatenate([first, second]))
            radii.append(0.95 * leaves**0.46)
        hub = hubs[lobe.split()[0]]
        chain = [(hub, airway, 5.0)] + _airways(airway, artery, tree)
        chain = chain[:AIRWAY_BRANCHES]
        chain += [(hub, airway, 0.0)] * (AIRWAY_BRANCHES - len(chain))
        airway_ends.append(
            np.array([np.concatenate([first, second]) for first, second, _ in chain])
        )
        central.extend(radius for _, _, radius in chain)
        lobes.extend([index] * len(chain))
    lumen = np.array(central)
    return {
        "vessel_ends": np.array(ends),
        "vessel_radii": np.array(radii),
        "airway_ends": np.concatenate(airway_ends),
        "airway_radii": np.stack([lumen, (lumen + 0.5 + 0.13 * lumen) * (lumen > 0)], axis=1),
        "airway_lobe": np.array(lobes),
    }


def _targets(patient, rng: np.random.Generator) -> list[np.ndarray]:
    """Points spread through each lobe, away from heart and chest wall."""
    points = rng.uniform((-140, -110, -145), (140, 110, 135), (6000, 3))
    cloud = _Cloud(points)
    inside = lung_distance(patient, cloud, profiles_at(patient, cloud.z)) < -5
    for part in patient["heart"]:
        inside &= ellipsoid(cloud, part)[0] > 6
    lobe = lobe_weights(patient, cloud, np.arange(5))
    count = ARTERY_LEAVES + VEIN_LEAVES
    result = []
    for index in range(5):
        own = points[inside & (lobe == index)]
        chosen = [own[0]]
        gap = np.full(len(own), np.inf)
        for _ in range(count - 1):
            gap = np.minimum(gap, np.linalg.norm(own - chosen[-1], axis=1))
            chosen.append(own[np.argmax(gap * rng.uniform(0.6, 1, len(own)))])
        result.append(rng.permutation(np.array(chosen)))
    return result


def _grow(start, points, rng, out) -> None:
    """Appends branches (first, second, leaves) that lead from `start` to all `points`."""
    if len(points) == 1:
        bend = (start + points[0]) / 2 + rng.normal(0, 1.5, 3)
        out += [(start, bend, 1), (bend, points[0], 1)]
        return
    share = 0.3 if len(points) > 8 else 0.42
    end = start + share * (points.mean(0) - start) + rng.normal(0, 1.0, 3)
    out.append((start, end, len(points)))
    spread = points - points.mean(0)
    axis = np.linalg.svd(spread, full_matrices=False)[2][0]
    order = np.argsort(spread @ axis)
    half = len(points) // 2 + int(rng.integers(0, 2)) * (len(points) > 3)
    _grow(end, points[order[:half]], rng, out)
    _grow(end, points[order[half:]], rng, out)


def _airways(root, artery_root, tree) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """Bronchi beside the larger arteries of a lobe, as (first, second, lumen radius)."""
    beside = (root - artery_root) / np.linalg.norm(root - artery_root)

    def moved(point, leaves):
        if point is artery_root:
            return root
        return point + beside * (0.95 * leaves**0.46 + 0.8 * leaves**0.46 + 1.2)

    leaves_at = {id(end): leaves for _, end, leaves in tree}
    large = [branch for branch in tree if branch[2] >= AIRWAY_LEAVES]
    large.sort(key=lambda branch: -branch[2])
    return [
        (moved(first, leaves_at.get(id(first), leaves)), moved(second, leaves), 0.72 * leaves**0.5)
        for first, second, leaves in large
    ]

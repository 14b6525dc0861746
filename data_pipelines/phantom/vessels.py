"""Great vessels, airways and the vessels of the lungs as capsules.

A lung tree fills its lobe by halving: from a root the branch runs part of the way to the mean of
the points it has to reach, splits them across their longest extent, and recurs. Radii fall with
the number of ends that a branch feeds, as Murray's law has it.
"""

import numpy as np

from data_pipelines.phantom.heart import coronary_paths
from data_pipelines.phantom.lungs import LOBES, lobe_weights, lung_distance, profiles_at
from data_pipelines.phantom.shapes import ellipsoid
from data_pipelines.phantom.tubes import join, pad, path

ARTERY_LEAVES, VEIN_LEAVES = 36, 24
AIRWAY_LEAVES = 4  # airways follow arteries that feed at least so many ends
AIRWAY_BRANCHES = 24  # capsules per lobe
CARINA = (-2.0, 20.0, 44.0)
HUBS = {"right": (-30.0, 22.0, 20.0), "left": (38.0, 26.0, 8.0)}
# Roots at the hila per lobe: airway, artery, vein.
ROOTS = {
    "right upper": ((-36, 20, 34), (-38, 8, 28), (-32, -4, 12)),
    "right middle": ((-40, 10, -8), (-44, 4, 0), (-34, -6, -4)),
    "right lower": ((-40, 30, -14), (-48, 26, -4), (-30, 26, -22)),
    "left upper": ((46, 14, 16), (46, 18, 28), (36, -4, 12)),
    "left lower": ((42, 34, -6), (50, 32, 4), (32, 28, -22)),
}


def sample_great_vessels(patient, rng: np.random.Generator, age: int) -> dict[str, np.ndarray]:
    """Aorta, other great vessels with the coronary arteries, and the oesophagus.

    Returns:
      aorta_ends [18, 6], aorta_radii [18]; great_ends [n, 6], great_radii [n]; gullet_ends
      [16, 6], gullet_radii [16].
    """
    top = float(patient["heart"][1][2] + 0.5 * patient["heart"][1][5])
    wide = rng.normal(1.0, 0.06) * (0.86 + 0.0028 * age)
    arch = rng.normal(64, 4)
    atrium = patient["heart"][1][:3]
    z = np.array([58.0, 30.0, 0.0, -30.0, -60.0, -100.0, -165.0])
    spine = profiles_at(patient, z).spine_y
    descending = np.stack([(23, 24, 22, 20, 16, 9, 4), spine - 23, z], 1)
    ascending = [(4, -22, top - 26), (-6, -28, top), (-14, -30, 36), (-8, -24, arch - 6)]
    aorta = [*ascending, (4, -10, arch), (16, 8, arch), *descending]
    radii = np.array([16, 16, 15.5, 15, 14, 13.5, 13, 12.5, 12.5, 12, 12, 11.5, 11])
    ends, aorta_radii = path(aorta, wide * radii, 18)
    tubes = [
        # Superior vena cava with both brachiocephalic veins, inferior vena cava
        path([(-26, -12, top - 20), (-26, -14, 30), (-24, -16, 76)], (10, 9.5, 9), 5),
        path([atrium + np.array([-8, 2, -10]), (-17, 6, -70), (-20, 16, -165)], (12, 12, 12), 8),
        path([(-24, -16, 76), (-34, -14, 110), (-40, -6, 150)], (7.5, 7, 6.5), 4),
        path([(-22, -18, 78), (10, -26, 92), (36, -14, 116), (40, -4, 150)], (7, 7, 7, 6), 6),
        # Brachiocephalic trunk, left carotid and subclavian artery
        path([(2, -14, arch + 4), (-12, -4, 100), (-26, 2, 150)], (6.5, 6, 5), 4),
        path([(12, 0, arch + 4), (18, 4, 104), (24, 4, 150)], (4, 4, 4), 4),
        path([(20, 12, arch + 4), (30, 20, 100), (46, 18, 128), (80, 0, 140)], (5, 5, 5, 4), 6),
        # Pulmonary trunk, right and left pulmonary artery
        path([(16, -42, top - 28), (17, -36, top), (18, -22, 24)], (14, 14, 13), 3),
        path([(18, -20, 24), (0, -2, 20), (-24, 6, 16), (-40, 10, 14)], (11, 11, 10, 9), 4),
        path([(18, -20, 24), (30, 2, 30), (40, 18, 26), (48, 26, 10)], (11, 10, 9, 8), 4),
        path([(-40, 10, 14), (-46, 24, 0)], (8, 7), 1),
        # Pulmonary veins
        path([(-32, -4, 12), (-22, 2, -8)], (6, 7), 1),
        path([(-30, 26, -22), (-14, 16, -22)], (6, 7), 1),
        path([(36, -4, 12), (18, 4, -8)], (6, 7), 1),
        path([(32, 28, -22), (10, 16, -22)], (6, 7), 1),
        # Azygos vein
        path([(-9, 34, -150), (-9, 38, 40), (-14, 30, 52), (-22, 0, 50)], (3, 3, 3, 3.5), 12),
    ]
    tubes += [
        path(nodes, (1.9,) * len(nodes), len(nodes) - 1)
        for nodes in coronary_paths(patient["heart"])
    ]
    great_ends, great_radii = join(tubes)
    gullet = np.stack([(2, 3, 5, 4, 8, 14, 26), spine - (21, 21, 22, 24, 28, 34, 44), z], 1)
    gullet[-1, 2] = -140
    gullet_ends, gullet_radii = path([(2, 30, 150), *gullet], (7, 7, 7, 7, 7.5, 8, 9, 10), 16)
    return {
        "aorta_ends": ends,
        "aorta_radii": aorta_radii,
        "great_ends": great_ends,
        "great_radii": great_radii * rng.normal(1, 0.05),
        "gullet_ends": gullet_ends,
        "gullet_radii": gullet_radii,
    }


def lobe_points(patient, rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """Points spread through each of `LOBES`, away from heart and chest wall, [count, 3] each."""
    points = rng.uniform((-140, -110, -145), (140, 110, 135), (4000, 3))
    cloud = _Cloud(points)
    inside = lung_distance(patient, cloud, profiles_at(patient, cloud.z)) < -5
    for part in patient["heart"]:
        inside &= ellipsoid(cloud, part)[0] > 6
    lobe = lobe_weights(patient, cloud, np.arange(5))
    return [_spread(points[inside & (lobe == index)], rng, count) for index in range(5)]


def sample_lung_trees(patient, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Vessels and airways.

    Returns:
      vessel_ends [n, 6], vessel_radii [n]; airway_ends [m, 6], airway_radii [m, 2] (lumen, outer
      wall), airway_lobe [m] (index of `LOBES`, -1 central).
    """
    targets = lobe_points(patient, rng, ARTERY_LEAVES + VEIN_LEAVES)
    vessels, airways = [], []
    airways.append(path([(0, 10, 165), (0, 14, 100), CARINA], (9, 9, 9), 8))
    airways += [path([CARINA, hub], (6.8, 6.0), 2) for hub in HUBS.values()]
    central = sum(len(radii) for _, radii in airways)
    for points, (lobe, roots) in zip(targets, ROOTS.items(), strict=True):
        airway, artery, vein = (np.array(root, float) for root in roots)
        tree: list[Branch] = []
        _grow(artery, points[:ARTERY_LEAVES], rng, tree)
        bronchi = _airways(airway, artery, tree)
        _grow(vein, points[ARTERY_LEAVES:], rng, tree)
        ends = np.array([np.concatenate(branch[:2]) for branch in tree])
        vessels.append((ends, 1.05 * np.array([branch[2] for branch in tree]) ** 0.43))
        lobar = path([HUBS[lobe.split()[0]], airway], (5.0, 4.5), 2)
        airways.append(pad(*join([lobar, bronchi]), AIRWAY_BRANCHES))
    vessel_ends, vessel_radii = join(vessels)
    airway_ends, lumen = join(airways)
    lobes = np.repeat(np.arange(-1, len(LOBES)), [central] + [AIRWAY_BRANCHES] * len(LOBES))
    return {
        "vessel_ends": vessel_ends,
        "vessel_radii": vessel_radii,
        "airway_ends": airway_ends,
        "airway_radii": np.stack([lumen, (lumen * 1.13 + 0.5) * (lumen > 0)], axis=1),
        "airway_lobe": lobes,
    }


Branch = tuple[np.ndarray, np.ndarray, int]  # first end, second end, ends of the tree it feeds


class _Cloud:
    """Points with x, y, z as `lungs` wants them."""

    def __init__(self, points: np.ndarray):
        self.x, self.y, self.z = points.T


def _spread(points: np.ndarray, rng: np.random.Generator, count: int) -> np.ndarray:
    """`count` of the points, each chosen far from those before, in random order."""
    chosen = [points[0]]
    gap = np.full(len(points), np.inf)
    for weight in rng.uniform(0.6, 1, (count - 1, len(points))):
        gap = np.minimum(gap, np.square(points - chosen[-1]).sum(1))
        chosen.append(points[np.argmax(gap * weight)])
    return rng.permutation(np.array(chosen))


def _grow(start: np.ndarray, points: np.ndarray, rng, tree: list[Branch]) -> None:
    """Appends the branches that lead from `start` to all `points`."""
    if len(points) == 1:
        bend = (start + points[0]) / 2 + rng.normal(0, 1.5, 3)
        tree += [(start, bend, 1), (bend, points[0], 1)]
        return
    share = 0.3 if len(points) > 8 else 0.42
    end = start + share * (points.mean(0) - start) + rng.normal(0, 1.0, 3)
    tree.append((start, end, len(points)))
    order = np.argsort(points[:, np.argmax(np.ptp(points, axis=0))])
    half = len(points) // 2
    _grow(end, points[order[:half]], rng, tree)
    _grow(end, points[order[half:]], rng, tree)


def _airways(root: np.ndarray, artery: np.ndarray, tree: list[Branch]):
    """Bronchi beside the larger arteries of a lobe, largest first."""
    beside = (root - artery) / np.linalg.norm(root - artery)
    feeds = {id(second): leaves for _, second, leaves in tree}

    def moved(point):
        if point is artery:
            return root
        return point + beside * (1.8 * feeds[id(point)] ** 0.43 + 1.2)

    large = sorted((b for b in tree if b[2] >= AIRWAY_LEAVES), key=lambda branch: -branch[2])
    ends = np.array([np.concatenate([moved(first), moved(second)]) for first, second, _ in large])
    return ends, 0.72 * np.array([leaves for _, _, leaves in large]) ** 0.5

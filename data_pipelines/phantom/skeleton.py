"""Ribs, costal cartilage, clavicles and vertebral processes as capsules."""

import numpy as np

from data_pipelines.phantom.lungs import Profiles, profiles_at
from data_pipelines.phantom.tubes import join, path

VERTEBRAE = 14
SPACING_MM = 22.5
TOP_MM = 144.0  # centre of the highest vertebra; the first rib belongs to the second
RIBS, RIB_PIECES = 11, 12
WALL_MM = 1.6  # compact bone


def sample_skeleton(patient, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns bone_ends [n, 6] and bone_radii [n, 3]: cartilage, bone, marrow."""
    slope = rng.normal(1.0, 0.12)
    calcified = float(rng.random() < 0.4)
    bones, cartilages = [], []
    for number in range(1, RIBS + 1):
        rib = _rib(patient, TOP_MM - SPACING_MM * number, number, slope)
        target = np.array([12.0, 0.0, min(rib[-1][2] + 14, 98.0)])
        levels = profiles_at(patient, target[2])
        target[1] = levels.cage_y - levels.cage_half_depth - 4
        middle = (rib[-1] + target) / 2 + np.array([0, -4, -6])
        for side in (-1, 1):
            mirror = np.array([side, 1, 1])
            bones.append(path(mirror * rib, (4.6,) * len(rib), RIB_PIECES))
            if number <= 7:
                points = mirror * np.stack([rib[-1], middle, target])
                cartilages.append(path(points, (5.0, 5.0, 5.0), 5))
    for side in (-1, 1):
        clavicle = np.array([(20, -34, 104), (70, -28, 116), (118, 6, 128)]) * (side, 1, 1)
        bones.append(path(clavicle, (6.5, 5, 5.5), 5))
        spine_of_scapula = np.array([(74, 82, 98), (122, 46, 122)]) * (side, 1, 1)
        bones.append(path(spine_of_scapula, (4, 6), 3))
    for height in TOP_MM - SPACING_MM * np.arange(VERTEBRAE):
        y = float(profiles_at(patient, height).spine_y)
        bones.append(path([(0, y + 34, height - 4), (0, y + 47, height - 16)], (3.4, 3.4), 1))
        for side in (-1, 1):
            process = [(11 * side, y + 20, height + 2), (26 * side, y + 30, height + 4)]
            bones.append(path(process, (4.2, 4.2), 1))
    bone_ends, bone = join(bones)
    cartilage_ends, cartilage = join(cartilages)
    none = np.zeros_like(bone)
    radii = [
        np.stack([none, bone, bone - WALL_MM], 1),
        np.stack([cartilage, 1.3 * calcified * (cartilage > 0), 0 * cartilage], 1),
    ]
    return {
        "bone_ends": np.concatenate([bone_ends, cartilage_ends]),
        "bone_radii": np.concatenate(radii),
    }


def _rib(patient, height: float, number: int, slope: float) -> np.ndarray:
    """Points of a left rib from the spine round the cage, descending to its front end."""
    drop = slope * np.interp(number, (1, 3, 7, 11), (26, 48, 62, 50))
    last = np.interp(number, (1, 7, 9, 11), (142, 146, 120, 84))
    angle = np.radians(np.linspace(17, last, RIB_PIECES + 1))
    z = height + 4 - drop * (1 - np.cos(angle)) / 1.8
    levels: Profiles = profiles_at(patient, z)
    u, v = np.sin(angle), np.cos(angle)
    reach = (u**4 + v**4 + 1.3 * u**2 * v**2) ** -0.25
    x = (levels.cage_half_width + 5) * u * reach
    y = levels.cage_y + (levels.cage_half_depth + 5) * v * reach
    return np.stack([x, y, z], 1)

"""Ribs, costal cartilage, clavicles, vertebral processes and humeral heads as capsules."""

import numpy as np

from data_pipelines.phantom.lungs import profiles_at

VERTEBRAE = 14
SPACING_MM = 22.5
TOP_MM = 144.0  # height of the highest vertebra's centre; the first rib belongs to the second
RIB_STEPS = 8


def sample_skeleton(patient, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns bone_ends [n, 6] and bone_radii [n, 3]: cartilage, bone, marrow."""
    ends: list[np.ndarray] = []
    radii: list[tuple[float, float, float]] = []
    heights = TOP_MM - SPACING_MM * np.arange(VERTEBRAE)
    slope = rng.normal(1.0, 0.12)
    calcified = rng.uniform(0, 1)

    def bone(points, radius, wall=1.6):
        for first, second in zip(points[:-1], points[1:], strict=True):
            ends.append(np.concatenate([first, second]))
            radii.append((0.0, radius, radius - wall))

    for side in (-1, 1):
        for number in range(1, 12):
            rib = _rib(patient, heights[number], number, side, slope)
            bone(rib, 4.6 + 0.6 * (number == 1))
            target = np.array([side * 12.0, 0.0, min(rib[-1][2] + 14, 98.0)])
            levels = profiles_at(patient, np.array(target[2]))
            target[1] = levels.cage_y - levels.cage_half_depth - 4
            joined = number <= 7
            middle = (rib[-1] + target) / 2 + (0, -4, -6)
            for first, second in ((rib[-1], middle), (middle, target)):
                ends.append(np.concatenate([first, second]))
                radii.append((5.0 * joined, 1.2 * joined * (calcified > 0.6), 0.0))
        shoulder = np.array([side * 148.0, 12.0, 134.0])
        bone(
            [
                np.array([side * 20.0, -34.0, 104.0]),
                np.array([side * 70.0, -28.0, 116.0]),
                np.array([side * 118.0, 6.0, 128.0]),
            ],
            5.5,
        )
        bone([shoulder, shoulder + (side * 8, 4, 60)], 21.0, 2.0)
        bone([np.array([side * 70.0, 84.0, 98.0]), np.array([side * 122.0, 46.0, 122.0])], 5.0)
    for height in heights:
        y = float(profiles_at(patient, np.array(height)).spine_y)
        bone([np.array([0.0, y + 34, height - 4]), np.array([0.0, y + 47, height - 16])], 3.4)
        for side in (-1, 1):
            bone(
                [
                    np.array([side * 11.0, y + 20, height + 2]),
                    np.array([side * 26.0, y + 30, height + 4]),
                ],
                4.2,
            )
    return {"bone_ends": np.array(ends), "bone_radii": np.array(radii)}


def _rib(patient, height: float, number: int, side: int, slope: float) -> list[np.ndarray]:
    """Points from the spine round the cage to the costal end, descending to the front."""
    drop = slope * np.interp(number, (1, 3, 7, 11), (26, 48, 62, 50))
    last = np.radians(np.interp(number, (1, 7, 9, 11), (142, 146, 120, 84)))
    points = []
    for angle in np.linspace(np.radians(17), last, RIB_STEPS):
        z = height + 4 - drop * (1 - np.cos(angle)) / 1.8
        levels = profiles_at(patient, np.array(z))
        u, v = np.sin(angle), np.cos(angle)
        reach = (u**4 + v**4 + 1.3 * u**2 * v**2) ** -0.25
        points.append(
            np.array(
                [
                    side * (levels.cage_half_width + 5) * u * reach,
                    levels.cage_y + (levels.cage_half_depth + 5) * v * reach,
                    z,
                ]
            )
        )
    return points

"""Shape of the heart: two ellipsoids, their cavities, and the courses of the coronary arteries."""

import numpy as np

from data_pipelines.phantom.shapes import make_ellipsoid

CORONARY_PIECES = 8


def sample_heart(patient, rng: np.random.Generator, ratio: float) -> np.ndarray:
    """Ventricles and atria as [2, 15] ellipsoids; together `ratio` of the inner chest width."""
    down = rng.normal(0.5, 0.06)
    apex = np.array([0.70, -0.5, -down])
    across = np.cross(apex, (0.0, 0.0, 1.0))
    rows = np.stack([apex, across, np.cross(apex, across)])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    plan = (
        ((21, -8, -14), (63, 43, 47), rows),
        ((-13, 11, 14), (40, 36, 40), np.eye(3)),
    )
    middle = np.array([2.0, -20.0, -30.0]) + rng.normal(0, 3, 3)
    ends = [
        np.array(centre) + side * np.sqrt(np.sum((np.array(half)[:, None] * frame) ** 2, 0))
        for centre, half, frame in plan
        for side in (-1, 1)
    ]
    extent = np.max(ends, axis=0)[0] - np.min(ends, axis=0)[0]
    scale = ratio * 2 * np.max(patient["cage_half_width"]) / extent
    middle[1] += 10 * (1 - scale)
    return np.stack(
        [
            make_ellipsoid(middle + scale * np.array(c), scale * np.array(h), frame)
            for c, h, frame in plan
        ]
    )


def chambers_of(heart: np.ndarray) -> np.ndarray:
    """Left and right ventricular cavities, [2, 15]; the atria are blood throughout."""
    ventricles = heart[0]
    rows = ventricles[6:].reshape(3, 3)
    scale = ventricles[3]
    left, right = ((-0.02, -0.2, -0.1), (0.62, 0.28, 0.3)), ((-0.06, 0.4, 0.14), (0.66, 0.18, 0.4))
    return np.stack(
        [
            make_ellipsoid(
                ventricles[:3] + scale * (np.array(offset) @ rows), scale * np.array(half), rows
            )
            for offset, half in (left, right)
        ]
    )


def coronary_paths(heart: np.ndarray) -> list[np.ndarray]:
    """Nodes [CORONARY_PIECES + 1, 3] of the left anterior descending, circumflex and right artery.

    They run on the ventricles' ellipsoid: the first in the furrow between the ventricles, the
    others round the base. Angles are measured from the upper side towards the right ventricle.
    """
    ventricles = heart[0]
    centre, half, rows = ventricles[:3], ventricles[3:6], ventricles[6:].reshape(3, 3)
    courses = (
        (
            np.linspace(-0.62, 0.8, CORONARY_PIECES + 1),
            np.linspace(-0.1, 0.55, CORONARY_PIECES + 1),
        ),
        (
            np.linspace(-0.6, -0.5, CORONARY_PIECES + 1),
            np.linspace(-0.3, -1.9, CORONARY_PIECES + 1),
        ),
        (np.linspace(-0.55, -0.4, CORONARY_PIECES + 1), np.linspace(0.6, 2.6, CORONARY_PIECES + 1)),
    )
    paths = []
    for along, angle in courses:
        radius = np.sqrt(1 - along**2)
        own = np.stack([along, radius * np.sin(angle), -radius * np.cos(angle)], 1)
        paths.append(centre + (own * (half + 2.0)) @ rows)
    return paths

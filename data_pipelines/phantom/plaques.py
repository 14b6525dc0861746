"""Calcified plaques of the aorta and the coronary arteries, and the courses of the latter."""

import numpy as np

from data_pipelines.phantom.findings import Finding
from data_pipelines.phantom.tubes import pad, path

AORTIC, CORONARY = 24, 20
SLOTS = AORTIC + CORONARY
CORONARY_PIECES = 8


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


def place_aortic(anatomy: dict[str, np.ndarray], finding: Finding, rng) -> None:
    """Short plaques on the wall of the arch and the descending aorta."""
    ends, radii = anatomy["aorta_ends"], anatomy["aorta_radii"]
    visible = np.flatnonzero(ends[:, 5] > -135)
    plaques, sizes = [], []
    for _ in range(round(5 + 19 * finding.severity)):
        piece = rng.choice(visible[4:])
        first, second = ends[piece, :3], ends[piece, 3:]
        axis = (second - first) / np.linalg.norm(second - first)
        out = np.cross(axis, rng.normal(size=3))
        out /= np.linalg.norm(out)
        spot = first + rng.random() * (second - first) + radii[piece] * out
        run = rng.uniform(2, 6) * (axis if rng.random() < 0.4 else np.cross(axis, out))
        plaques.append(np.concatenate([spot - run, spot + run]))
        sizes.append(rng.uniform(1.2, 1.8) + 0.8 * finding.severity)
    slots = pad(np.array(plaques), np.array(sizes), AORTIC)
    anatomy["calcium_ends"][:AORTIC], anatomy["calcium_radii"][:AORTIC, 0] = slots


def place_coronary(anatomy: dict[str, np.ndarray], finding: Finding, rng) -> None:
    """Plaques along the coronary arteries, the anterior descending one first."""
    paths = coronary_paths(anatomy["heart"])
    ends, radii = [], []
    for index in range(round(4 + 16 * finding.severity)):
        nodes = paths[0 if index < 3 else rng.integers(3)]
        piece = rng.integers(CORONARY_PIECES - 2)
        tube, size = path(nodes[piece : piece + 2], rng.uniform(1.2, 1.7, 2), 1)
        ends.append(tube[0])
        radii.append(size[0] + 0.6 * finding.severity)
    slots = pad(np.array(ends), np.array(radii), CORONARY)
    anatomy["calcium_ends"][AORTIC:], anatomy["calcium_radii"][AORTIC:, 1] = slots

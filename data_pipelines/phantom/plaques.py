"""Calcified plaques of the aorta and the coronary arteries."""

import numpy as np

from data_pipelines.phantom.findings import Finding
from data_pipelines.phantom.heart import CORONARY_PIECES, coronary_paths
from data_pipelines.phantom.tubes import pad, path

AORTIC, CORONARY = 24, 20
SLOTS = AORTIC + CORONARY


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

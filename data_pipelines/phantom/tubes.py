"""Builds capsules (ends [n, 6] as x, y, z of both, radii [n], mm) along paths."""

import numpy as np

Capsules = tuple[np.ndarray, np.ndarray]


def path(points, radii, pieces: int) -> Capsules:
    """A path with a radius at each of its points, cut into pieces of equal length."""
    points, radii = np.asarray(points, float), np.asarray(radii, float)
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    at = np.linspace(0, along[-1], pieces + 1)
    nodes = np.stack([np.interp(at, along, coordinate) for coordinate in points.T], 1)
    return chain(nodes), np.interp((at[1:] + at[:-1]) / 2, along, radii)


def chain(nodes: np.ndarray) -> np.ndarray:
    """Capsule ends [n, 6] that join nodes [n + 1, 3]."""
    return np.concatenate([nodes[:-1], nodes[1:]], axis=1)


def ring(centre, first_axis, second_axis, pieces: int) -> np.ndarray:
    """Capsule ends of a closed ellipse spanned by two half-axes [3]."""
    angle = np.linspace(0, 2 * np.pi, pieces + 1)[:, None]
    return chain(np.asarray(centre) + np.cos(angle) * first_axis + np.sin(angle) * second_axis)


def join(tubes: list[Capsules]) -> Capsules:
    """Several groups of capsules as one."""
    return np.concatenate([tube[0] for tube in tubes]), np.concatenate([t[1] for t in tubes])


def pad(ends: np.ndarray, radii: np.ndarray, count: int) -> Capsules:
    """Exactly `count` capsules: radius 0 where there are fewer, the first ones where more."""
    missing = max(count - len(ends), 0)
    ends = np.concatenate([ends.reshape(-1, 6), np.zeros((missing, 6))])
    radii = np.concatenate([radii, np.zeros((missing, *radii.shape[1:]))])
    return ends[:count], radii[:count]

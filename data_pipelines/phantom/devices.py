"""Medical devices as capsules with three radii: metal, plastic, and the bore of a tube."""

import numpy as np

from data_pipelines.phantom.findings import DEVICES, Finding
from data_pipelines.phantom.lungs import profiles_at
from data_pipelines.phantom.tubes import join, path, ring
from gct_jax.errors import InputError

SLOTS = 64
METAL, PLASTIC, BORE = range(3)
CAVA = [(-24, -16, 76), (-26, -14, 30)]  # superior vena cava from above


def place(anatomy: dict[str, np.ndarray], finding: Finding, rng) -> None:
    """Draws the device that the finding's place names."""
    if finding.place not in DEVICES:
        raise InputError(f"Medical material: {finding.place!r} is not one of: {', '.join(DEVICES)}")
    draw = {
        "pacemaker": _pacemaker,
        "port catheter": _port,
        "central venous catheter": _catheter,
        "endotracheal tube": _tube,
        "prosthetic valve": _valve,
        "set of sternal wires": _wires,
    }[finding.place]
    first = 0
    for (ends, radii), column in draw(anatomy, rng):
        last = first + len(ends)
        anatomy["device_ends"][first:last] = ends
        anatomy["device_radii"][first:last, column] = radii
        first = last


def _front(anatomy, x: float, z: float) -> float:
    """y of the front of the muscles at x, z: generators and ports lie on it, under the skin."""
    levels = profiles_at(anatomy, np.array(z))
    u = (x / levels.body_half_width) ** 2
    v = np.sqrt((1.3 * u / 2) ** 2 - u * u + 1) - 1.3 * u / 2
    return float(levels.body_y - levels.body_half_depth * np.sqrt(v))


def _pacemaker(anatomy, rng):
    x, z = rng.normal(84, 3), rng.normal(72, 4)
    rows = []
    for height in z + np.linspace(-14, 14, 5):  # the flat box follows the chest wall
        ends = [(x + dx, _front(anatomy, x + dx, height) + 1, height) for dx in (-16, 16)]
        rows.append(path(ends, (4.5, 4.5), 2))
    y = _front(anatomy, x, z)
    ventricle = anatomy["heart"][0]
    tip = ventricle[:3] + ventricle[6:9] * 0.75 * ventricle[3] + (0, -4, -8)
    vein = [(x - 10, y + 4, z + 16), (58, -24, 104), (24, -26, 94), *CAVA]
    leads = [
        path([*vein, (-28, -14, 0), (-12, -26, -34), tip], (1.1,) * 8, 20),
        path(
            [*[np.add(p, (2, 3, 2)) for p in vein], (-30, -18, 4), (-22, -34, 10)], (1.1,) * 7, 16
        ),
    ]
    return [(join(rows), METAL), (join(leads), METAL)]


def _port(anatomy, rng):
    x, z = rng.normal(-80, 4), rng.normal(68, 4)
    y = _front(anatomy, x, z) + 3
    chamber = path([(x, y - 2, z), (x, y + 2, z)], (9, 9), 1)
    line = path(
        [(x, y, z), (-56, -24, 110), (-36, -12, 122), *CAVA, (-26, -14, 12)], (1.5,) * 6, 16
    )
    return [(chamber, METAL), (line, METAL)]


def _catheter(anatomy, rng):
    tip = (-26, -12, rng.uniform(-5, 20))
    return [(path([(-42, -8, 150), (-36, -12, 118), *CAVA, tip], (1.8,) * 5, 14), METAL)]


def _tube(anatomy, rng):
    low = rng.uniform(58, 78)
    middle = [(0, 10, 165), (0, 14, 100), (-1.0, 17.5, low)]
    stripe = [np.add(point, (0, -4.6, 0)) for point in middle]
    return [
        (path(middle, (6, 6, 6), 7), PLASTIC),
        (path(middle, (4, 4, 4), 7), BORE),
        (path(stripe, (1.2,) * 3, 7), METAL),
    ]


def _valve(anatomy, rng):
    root = anatomy["aorta_ends"][0]
    axis = (root[3:] - root[:3]) / np.linalg.norm(root[3:] - root[:3])
    first = np.cross(axis, (0, 1, 0))
    ends = ring(root[3:], 13 * first, 13 * np.cross(axis, first), 14)
    return [((ends, np.full(14, 1.9)), METAL)]


def _wires(anatomy, rng):
    wires = []
    for z in np.linspace(92, -14, 6) + rng.normal(0, 2, 6):
        levels = profiles_at(anatomy, np.array(z))
        centre = (0, levels.cage_y - levels.cage_half_depth - 4, z)
        half = max(float(levels.sternum_half_width), 10.0) + 1
        ends = ring(centre, np.array([half, 0, 3.0]), np.array([0, 7.5, 0]), 10)
        wires.append((ends, np.full(10, 1.1)))
    return [(join(wires), METAL)]

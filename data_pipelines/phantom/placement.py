"""Turns the findings of a case into the arrays that `render` draws.

Every array has a fixed number of slots; a slot of an absent finding has radius, depth or severity
0, or an ellipsoid far outside the volume. Each finding has its own random stream.
"""

from collections.abc import Callable

import numpy as np

from data_pipelines.phantom import devices, plaques
from data_pipelines.phantom.findings import FINDINGS, LOBES, Finding, sides_of
from data_pipelines.phantom.lungs import profiles_at
from data_pipelines.phantom.shapes import make_ellipsoid
from data_pipelines.phantom.tubes import pad, path
from data_pipelines.phantom.vessels import lobe_points
from gct_jax.errors import InputError

NODULES, NODES, BANDS, BULLAE = 6, 12, 80, 10
# Patches of each kind; those beside the first of a lobe are smaller by the factor. Airspace
# disease, ground glass or consolidation, is seldom a single ball.
PATCHES = {"Consolidation": 4, "Lung opacity": 4, "Atelectasis": 2}
PATCH_KIND = np.repeat(np.arange(len(PATCHES)), list(PATCHES.values()))  # of each slot
SATELLITES = {"Consolidation": 0.8, "Lung opacity": 0.8, "Atelectasis": 0.7}
FAR_AWAY = make_ellipsoid((0.0, 0.0, 1e4), (1.0, 1.0, 1.0))
# Places of enlarged nodes; those outside the mediastinum as on the left, x is mirrored.
STATIONS = {
    "mediastinal": [(-20, 6, 60), (-2, 2, 50), (24, -4, 44), (4, 28, 26), (14, -38, 62)],
    "hilar": [(46, 6, 12), (42, 30, 18), (52, 20, -6)],
    "axillary": [(128, -6, 88), (124, 12, 70), (132, 4, 104)],
}

Anatomy = dict[str, np.ndarray]


def place_findings(seed: int, patient: Anatomy, findings: tuple[Finding, ...]) -> Anatomy:
    """Adds the findings' arrays to a patient.

    Raises:
      InputError: an unknown name, side or place, or a name given twice.
    """
    anatomy = patient | _empty_slots(patient)
    names = [finding.name for finding in findings]
    if len(set(names)) < len(names):
        raise InputError(f"a finding is given twice: {', '.join(names)}")
    for finding in sorted(findings, key=lambda finding: finding.name != "Pleural effusion"):
        if finding.name not in FINDINGS:
            raise InputError(f"finding {finding.name!r} is not one of: {', '.join(FINDINGS)}")
        rng = np.random.default_rng((seed, 2, FINDINGS.index(finding.name)))
        PLACERS[finding.name](anatomy, finding, rng)
    return {
        name: np.asarray(value, patient.get(name, np.float32(0)).dtype)
        for name, value in anatomy.items()
    }


def _empty_slots(patient: Anatomy) -> Anatomy:
    lesions = NODULES + NODES + BANDS + BULLAE
    slots = {
        "calcium_ends": (plaques.SLOTS, 6),
        "calcium_radii": (plaques.SLOTS, 2),
        "device_ends": (devices.SLOTS, 6),
        "device_radii": (devices.SLOTS, 3),
        "lesion_ends": (lesions, 6),
        "lesion_radii": (lesions, 4),
        "effusion_mm": (2,),
        "effusion_top": (2,),
        "pericardial_mm": (),
        "cardiomegaly": (),
        "emphysema": (5,),
        "septal": (5,),
        "mosaic": (),
    }
    anatomy = {name: np.zeros(shape) for name, shape in slots.items()}
    anatomy["patches"] = np.tile(FAR_AWAY, (len(PATCH_KIND), 1))
    anatomy["patch_lobe"] = np.full(len(anatomy["patches"]), -1.0)
    anatomy["hernia"] = FAR_AWAY
    # Airways: lumen, outer wall, wall if thickened, lumen if dilated
    radii = patient["airway_radii"]
    anatomy["airway_radii"] = np.concatenate([radii, np.zeros_like(radii)], 1)
    return anatomy


def lobes_of(finding: Finding) -> list[int]:
    """Indices of the lobes (see `lungs.LOBES`) that a finding names; without a place all."""
    if finding.place is not None and finding.place not in LOBES:
        raise InputError(f"{finding.name}: place {finding.place!r} is not one of {LOBES}")
    lobes = []
    for side in sides_of(finding) or (0, 1):
        names = (LOBES, (LOBES[0], LOBES[2]))[side]
        first = 3 * side
        lobes += [first + i for i, name in enumerate(names) if finding.place in (None, name)]
    if not lobes:
        raise InputError(f"{finding.name}: there is no {finding.side} {finding.place}")
    return lobes


def _focal_lobes(finding: Finding, rng) -> list[int]:
    """One of the lobes that a finding names, or one on each side when it is bilateral."""
    lobes = lobes_of(finding)
    if finding.side != "bilateral":
        return [lobes[rng.integers(len(lobes))]]
    sides = [lobe for lobe in lobes if lobe < 3], [lobe for lobe in lobes if lobe >= 3]
    return [side[rng.integers(len(side))] for side in sides if side]


def _effusion(anatomy: Anatomy, finding: Finding, rng) -> None:
    depth = finding.size_mm or 12 + 88 * finding.severity
    for side in sides_of(finding):
        share = rng.uniform(0.75, 1.0)
        anatomy["effusion_mm"][side] = depth * share
        anatomy["effusion_top"][side] = -50 + 1.6 * depth * share


def _pericardial(anatomy: Anatomy, finding: Finding, rng) -> None:
    anatomy["pericardial_mm"] = np.array(finding.size_mm or 6 + 18 * finding.severity)


def _cardiomegaly(anatomy: Anatomy, finding: Finding, rng) -> None:
    anatomy["cardiomegaly"] = np.array(1.0)  # the heart itself is enlarged in `sample_patient`


def _hernia(anatomy: Anatomy, finding: Finding, rng) -> None:
    half = 0.5 * (finding.size_mm or 30 + 50 * finding.severity) * rng.normal(1, 0.06, 3)
    z = anatomy["dome_top"].min() + 2 + 0.4 * half[2]
    spine = float(profiles_at(anatomy, z).spine_y)
    centre = (0.55 * half[0] + rng.normal(0, 3), spine - 17 - 0.9 * half[1], z)
    anatomy["hernia"] = make_ellipsoid(centre, half * (1.05, 0.9, 1.0))


def _nodes(anatomy: Anatomy, finding: Finding, rng) -> None:
    if finding.place not in STATIONS:
        raise InputError(f"Lymphadenopathy: place {finding.place!r} is not in {list(STATIONS)}")
    mirrors = [(-1, 1)[side] for side in sides_of(finding)] or [1]
    places = [
        np.array(place) * (mirror, 1, 1) for place in STATIONS[finding.place] for mirror in mirrors
    ]
    short = finding.size_mm or 12 + 20 * finding.severity
    order = rng.permutation(len(places))
    count = max(2 * len(mirrors), round(len(places) * (0.4 + 0.6 * finding.severity)))
    ends, radii = [], []
    for rank, index in enumerate(order[:count]):
        radius = 0.5 * short * (1 if rank == 0 else rng.uniform(0.6, 0.95))
        centre = places[index] + rng.normal(0, 2, 3)
        half = 0.35 * radius * _unit(rng)
        ends.append(np.concatenate([centre - half, centre + half]))
        radii.append(radius)
    _put_lesions(anatomy, NODULES, NODES, 1, ends, radii)


def _nodule(anatomy: Anatomy, finding: Finding, rng) -> None:
    radius = 0.5 * (finding.size_mm or 6 + 26 * finding.severity)
    lobes = _focal_lobes(finding, rng)
    ends, radii = [], []
    for lobe in lobes:
        centre = _lobe_point(anatomy, rng, lobe)
        for shrink, away in ((1.0, 0.0), (0.75, 0.4), (0.7, 0.45)):  # lobulated
            point = centre + away * radius * _unit(rng)
            ends.append(np.concatenate([point, point]))
            radii.append(shrink * radius)
    _put_lesions(anatomy, 0, NODULES, 0, ends, radii)


def _fibrosis(anatomy: Anatomy, finding: Finding, rng) -> None:
    lobes = _focal_lobes(finding, rng)
    ends, radii = [], []
    bands = max(3, round((4 + 8 * finding.severity) / len(lobes) ** 0.5))
    for lobe in lobes:
        points = lobe_points(anatomy, rng, 14)[lobe]
        middle = points[np.argmax(points[:, 2])] if lobe in (0, 3) else points[0]
        near = points[np.argsort(np.linalg.norm(points - middle, axis=1))]
        for target in near[1 + np.arange(bands) % 7]:
            offset = rng.normal(0, 3, (4, 3)) * [[2], [1], [1], [1]]
            nodes = middle + np.linspace(-0.4, 1.1, 4)[:, None] * (target - middle) + offset
            tube = path(nodes, rng.uniform(1.0, 1.8, 4) + 1.2 * finding.severity, 5)
            ends += list(tube[0])
            radii += list(tube[1])
    _put_lesions(anatomy, NODULES + NODES, BANDS, 2, ends, radii)


def _emphysema(anatomy: Anatomy, finding: Finding, rng) -> None:
    lobes = lobes_of(finding)
    anatomy["emphysema"][lobes] = 0.35 + 0.65 * finding.severity
    ends, radii = [], []
    for lobe in lobes if finding.severity > 0.35 else ():
        points = lobe_points(anatomy, rng, 10)[lobe]
        for point in points[np.argsort(-np.abs(points[:, 0]) - points[:, 2])][:2]:
            ends.append(np.concatenate([point, point + rng.normal(0, 4, 3)]))
            radii.append(4 + 14 * finding.severity * rng.uniform(0.4, 1))
    _put_lesions(anatomy, NODULES + NODES + BANDS, BULLAE, 3, ends, radii)


def _septal(anatomy: Anatomy, finding: Finding, rng) -> None:
    anatomy["septal"][lobes_of(finding)] = 0.4 + 0.6 * finding.severity


def _mosaic(anatomy: Anatomy, finding: Finding, rng) -> None:
    anatomy["mosaic"] = np.array(0.45 + 0.55 * finding.severity)


def _thick_airways(anatomy: Anatomy, finding: Finding, rng) -> None:
    chosen = np.isin(anatomy["airway_lobe"], lobes_of(finding))
    radii = anatomy["airway_radii"]
    thick = (radii[:, 1] + 1.2 + 2.0 * finding.severity) * (radii[:, 1] > 0)
    radii[:, 1] = np.where(chosen, thick, radii[:, 1])
    radii[:, 2] = np.where(chosen, thick, 0)


def _wide_airways(anatomy: Anatomy, finding: Finding, rng) -> None:
    chosen = np.isin(anatomy["airway_lobe"], lobes_of(finding))
    radii = anatomy["airway_radii"]
    wide = (2.2 + 2.2 * finding.severity + 0.9 * radii[:, 0]) * (radii[:, 0] > 0)
    wall = radii[:, 1] - radii[:, 0] + 0.7
    radii[:, 0] = np.where(chosen, wide, radii[:, 0])
    radii[:, 1] = np.where(chosen, (wide + wall) * (wide > 0), radii[:, 1])
    radii[:, 2] = np.where(chosen & (radii[:, 2] > 0), radii[:, 1], radii[:, 2])
    radii[:, 3] = np.where(chosen, wide, 0)


def _patches(anatomy: Anatomy, finding: Finding, rng) -> None:
    slots = np.flatnonzero(list(PATCHES).index(finding.name) == PATCH_KIND)
    lobes = _focal_lobes(finding, rng)
    size = 13 + 42 * finding.severity
    for number, slot in enumerate(slots):
        lobe = lobes[number % len(lobes)]
        share = SATELLITES[finding.name] if number >= len(lobes) else 1.0
        if finding.name == "Atelectasis":
            half = np.array([20 + 0.7 * size, 14 + 0.5 * size, 4.5 + 9 * finding.severity])
            half *= rng.uniform(0.9, 1.1, 3) * share
            rows = _tilted(rng, 0.3)
            centre = _lobe_point(anatomy, rng, lobe, lowest=True)
        else:
            half = size * rng.uniform(0.8, 1.15, 3) * share
            rows = _tilted(rng, 1.0)
            centre = _lobe_point(anatomy, rng, lobe)
        anatomy["patches"][slot] = make_ellipsoid(centre, half, rows)
        anatomy["patch_lobe"][slot] = lobe


def _lobe_point(anatomy: Anatomy, rng, lobe: int, lowest: bool = False) -> np.ndarray:
    """A point of the lobe, away from pleural fluid; `lowest`: near the base of the lobe."""
    points = lobe_points(anatomy, rng, 24)[lobe]
    side = int(lobe > 2)
    if anatomy["effusion_mm"][side]:
        points = points[np.argsort(points[:, 1] - 0.3 * points[:, 2])][:8]
    elif lowest:
        points = points[np.argsort(points[:, 2])][:6]
    return points[rng.integers(len(points))]


def _put_lesions(anatomy: Anatomy, first: int, count: int, column: int, ends, radii) -> None:
    ends, radii = pad(np.array(ends), np.array(radii, float), count)
    anatomy["lesion_ends"][first : first + count] = ends
    anatomy["lesion_radii"][first : first + count, column] = radii


def _unit(rng) -> np.ndarray:
    direction = rng.normal(size=3)
    return direction / np.linalg.norm(direction)


def _tilted(rng, angle: float) -> np.ndarray:
    """Rows of a rotation by a random vector of this standard deviation (radians)."""
    return np.linalg.qr(np.eye(3) + angle * 0.5 * rng.normal(size=(3, 3)))[0].T


PLACERS: dict[str, Callable[[Anatomy, Finding, np.random.Generator], None]] = {
    "Medical material": devices.place,
    "Arterial wall calcification": plaques.place_aortic,
    "Cardiomegaly": _cardiomegaly,
    "Pericardial effusion": _pericardial,
    "Coronary artery wall calcification": plaques.place_coronary,
    "Hiatal hernia": _hernia,
    "Lymphadenopathy": _nodes,
    "Emphysema": _emphysema,
    "Atelectasis": _patches,
    "Lung nodule": _nodule,
    "Lung opacity": _patches,
    "Pulmonary fibrotic sequela": _fibrosis,
    "Pleural effusion": _effusion,
    "Mosaic attenuation pattern": _mosaic,
    "Peribronchial thickening": _thick_airways,
    "Consolidation": _patches,
    "Bronchiectasis": _wide_airways,
    "Interlobular septal thickening": _septal,
}

"""Where the organs should be in a chest CT: the geometry on which the detectors work.

A volume of any grid is averaged to 9 x 5.625 x 5.625 mm. The average healthy phantom is laid over
it (shifted along x and widened to fit the lungs found by threshold) and gives for every voxel its
distance to the walls of the chest cavity, to the heart, to the aorta and to the diaphragm.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from data_pipelines.phantom import lungs
from data_pipelines.phantom.anatomy import sample_patient
from data_pipelines.phantom.shapes import ellipsoid

SLICE_MM, PIXEL_MM = 9.0, 5.625
AIR_BELOW_HU, BODY_ABOVE_HU = -500.0, -300.0
PATIENTS = 24  # that the average is taken of
# Half the width between the outer edges of the average patient's lungs between the knots below, and
# the middle of the patient along y; measured on renderings of healthy patients.
LUNG_HALF_WIDTH_MM, MIDDLE_Y_MM = 115.7, 4.0
FIT_Z_MM = (-5.0, 60.0)
HILA_MM = {"right": (-42.0, 16.0, 8.0), "left": (45.0, 24.0, 8.0)}
SIDES = ("right", "left")


class Points(NamedTuple):
    """Coordinates in mm in the patient's frame, each [depth, height, width]."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray


@dataclasses.dataclass(frozen=True)
class Chest:
    """A volume with its geometry; all arrays [depth, height, width], distances in mm.

    Attributes:
      hu: CT numbers clipped to [-1000, 1000].
      body, air: inside the skin; air inside the body, of lungs, airways and bowel.
      points: coordinates of the patient that the average body has been fitted to.
      wall: distance to the outline of the chest cavity, negative inside.
      above_dome: height above the diaphragm, corrected for its height in this patient.
      heart: distance to the heart's surface, grown to the measured heart width.
      aorta: distance to the aorta's outer wall, negative inside.
      hilum: distance to the nearer hilum.
      lobe: index into `lungs.LOBES`.
      spine_y, front_y: front of the spine and back of the sternum at each height.
      dome_mm: height of the right and left diaphragm above its average.
      heart_ratio: width of the heart over the width of the lungs.
    """

    hu: np.ndarray
    body: np.ndarray
    air: np.ndarray
    points: Points
    wall: np.ndarray
    above_dome: np.ndarray
    heart: np.ndarray
    aorta: np.ndarray
    hilum: np.ndarray
    lobe: np.ndarray
    spine_y: np.ndarray
    front_y: np.ndarray
    dome_mm: tuple[float, float]
    heart_ratio: float

    def side(self, name: str) -> np.ndarray:
        """Voxels of the patient's "right" or "left"."""
        return self.points.x < 0 if name == "right" else self.points.x > 0

    @functools.cached_property
    def local(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation in HU over 3 x 3 pixels of a slice."""
        mean = ndimage.uniform_filter(self.hu, (1, 3, 3))
        square = ndimage.uniform_filter(self.hu * self.hu, (1, 3, 3))
        return mean, np.sqrt(np.maximum(square - mean * mean, 0))

    @functools.cached_property
    def detail(self) -> np.ndarray:
        """HU above the median of 5 x 5 pixels of a slice: what is smaller than about 15 mm."""
        return self.hu - ndimage.median_filter(self.hu, (1, 5, 5))


@functools.lru_cache(maxsize=1)
def average_patient() -> dict[str, np.ndarray]:
    """Mean of the arrays that describe the chest cavity over healthy patients."""
    patients = [
        sample_patient(np.random.default_rng((seed, 1)), 58, ("male", "female")[seed % 2], ())
        for seed in range(PATIENTS)
    ]
    names = [*lungs.Profiles._fields, "levels_mm", "dome_top", "apex", "oblique", "horizontal"]
    names += ["heart", "aorta_ends", "aorta_radii"]
    return {name: np.mean([p[name] for p in patients], 0).astype(np.float32) for name in names}


def read_chest(volume_hu: np.ndarray, spacing_mm: tuple[float, float, float]) -> Chest:
    """Segment a volume and fit the average chest to it.

    Args:
      volume_hu: [depth, height, width] in HU, axes feet to head, front to back, right to left,
        isocentre in the middle.
      spacing_mm: along the same axes.
    """
    hu = np.clip(to_detector_grid(volume_hu, spacing_mm), -1000, 1000)
    z, y, x = (_axis(n, mm) for n, mm in zip(hu.shape, (SLICE_MM, PIXEL_MM, PIXEL_MM), strict=True))
    body = _body(hu)
    air = ndimage.binary_erosion(body, np.ones((1, 3, 3))) & (hu < AIR_BELOW_HU)
    middle, half_width = _fit(air, z, x)
    ratio = _heart_ratio(body, air, z, y, x, middle, half_width)

    stretch = np.clip(half_width / LUNG_HALF_WIDTH_MM, 0.85, 1.15)
    grid = np.meshgrid(z, y - MIDDLE_Y_MM, (x - middle) / stretch, indexing="ij")
    points = Points(*(axis.astype(np.float32) for axis in reversed(grid)))
    patient = average_patient()
    levels = lungs.profiles_at(patient, points.z[:, :1, :1])
    above = points.z - lungs.diaphragm_height(patient, points)
    domes = _dome_offset(air, points, above, -1), _dome_offset(air, points, above, 1)
    oblique, horizontal = lungs.fissure_distance(patient, points)
    right = np.where(oblique < 0, 2, np.where(horizontal > 0, 0, 1))
    heart = np.minimum(*(ellipsoid(points, part)[0] for part in patient["heart"]))
    return Chest(
        hu=hu,
        body=body,
        air=air,
        points=points,
        wall=lungs.lung_distance(patient, points, levels),
        above_dome=above - np.where(points.x > 0, domes[1], domes[0]),
        heart=heart - 0.5 * half_width * np.clip(ratio - 0.9, 0, 0.6),
        aorta=_aorta_distance(patient, points),
        hilum=np.minimum(*(_distance(points, HILA_MM[side]) for side in SIDES)),
        lobe=np.where(points.x < 0, right, np.where(oblique < 0, 4, 3)),
        spine_y=levels.spine_y + 0 * points.y,
        front_y=levels.cage_y - levels.cage_half_depth + 0 * points.y,
        dome_mm=domes,
        heart_ratio=ratio,
    )


def to_detector_grid(volume_hu: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Box average and linear interpolation to 9 x 5.625 x 5.625 mm about the same centre."""
    factors = np.array([SLICE_MM, PIXEL_MM, PIXEL_MM]) / np.asarray(spacing_mm, float)
    volume = np.asarray(volume_hu, np.float32)
    if np.allclose(factors, 1):
        return volume
    shape = np.maximum(1, np.round(volume.shape / factors)).astype(int)
    smooth = ndimage.uniform_filter(volume, np.maximum(1, np.round(factors)).astype(int))
    where = [
        (old - 1) / 2 + factor * (np.arange(new) - (new - 1) / 2)
        for old, new, factor in zip(volume.shape, shape, factors, strict=True)
    ]
    # uniform_filter with an even size is centred half a voxel towards the first voxel.
    shift = [0.5 * (round(factor) % 2 == 0) for factor in factors]
    where = [axis + offset for axis, offset in zip(where, shift, strict=True)]
    grid = np.meshgrid(*where, indexing="ij")
    return ndimage.map_coordinates(smooth, grid, order=1, mode="nearest")


def _axis(count: int, spacing_mm: float) -> np.ndarray:
    return (np.arange(count) - (count - 1) / 2) * spacing_mm


def _body(hu: np.ndarray) -> np.ndarray:
    """The largest piece above air without the table, filled slice by slice."""
    solid = ndimage.binary_opening(hu > BODY_ABOVE_HU, np.ones((1, 3, 3)))
    labels, count = ndimage.label(solid)
    if count:
        solid = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    return np.stack([ndimage.binary_fill_holes(one) for one in solid])


def _fit(air: np.ndarray, z: np.ndarray, x: np.ndarray) -> tuple[float, float]:
    """Middle and half the width of the lungs, medians over slices; average ones if no lung."""
    rows = (z >= FIT_Z_MM[0]) & (z <= FIT_Z_MM[1])
    columns = [np.flatnonzero(one.sum(0) >= 4) for one in air[rows]]
    edges = np.array([(x[c[0]], x[c[-1]]) for c in columns if len(c) > 8])
    if not len(edges):
        return 0.0, LUNG_HALF_WIDTH_MM
    middle, half_width = np.median(edges.mean(1)), np.median(np.diff(edges)) / 2
    return float(middle), float(half_width)


def _heart_ratio(body, air, z, y, x, middle: float, half_width: float) -> float:
    """Width of the airless mediastinum in front of the spine over the half width of the lungs,
    its median over the slices of the heart."""
    solid = (body & ~air)[(z > -75) & (z < 5)][:, (y > -60) & (y < 25)]
    start = int(np.argmin(np.abs(x - middle)))
    right = np.cumprod(solid[..., start::-1], axis=-1).sum(-1) * PIXEL_MM
    left = np.cumprod(solid[..., start:], axis=-1).sum(-1) * PIXEL_MM
    usable = (right > 0) & (right < 95) & (left < 110)  # else the row runs through the chest wall
    widths = np.where(usable, right, 0).max(1) + np.where(usable, left, 0).max(1)
    found = widths[usable.any(1)]
    return float(np.median(found) / half_width) if len(found) else 0.0


def _dome_offset(air: np.ndarray, points: Points, above: np.ndarray, side: int) -> float:
    """How much higher than average the lungs of one side begin, mm."""
    near = np.abs(points.x[0] - 62 * side) < 24
    columns = near & (np.abs(points.y[0] + 12) < 34)
    lung = air[2:24, columns]  # [heights, columns]; the lowest slices may cut bowel gas
    if not lung.any():
        return 0.0
    first = above[2:24, columns][np.argmax(lung, axis=0), np.arange(lung.shape[1])]
    return float(np.clip(np.percentile(first[lung.any(0)], 25), -25, 35))


def _distance(points: Points, centre: tuple[float, ...]) -> np.ndarray:
    return np.sqrt(sum((axis - c) ** 2 for axis, c in zip(points, centre, strict=True)))


def _aorta_distance(patient: dict[str, np.ndarray], points: Points) -> np.ndarray:
    nearest = np.full(points.x.shape, np.inf, np.float32)
    for ends, radius in zip(patient["aorta_ends"], patient["aorta_radii"], strict=True):
        first, along = ends[:3], ends[3:] - ends[:3]
        offset = [axis - start for axis, start in zip(points, first, strict=True)]
        t = sum(o * a for o, a in zip(offset, along, strict=True)) / (along @ along)
        t = np.clip(t, 0, 1)
        gap = np.sqrt(sum((o - t * a) ** 2 for o, a in zip(offset, along, strict=True)))
        nearest = np.minimum(nearest, gap - radius)
    return nearest

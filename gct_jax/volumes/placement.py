"""A CT on the grid of a model, and a volume of that grid back on the CT's own.

    orientation  depth feet to head, height front to back, width right to left  (`canonical`)
    field        in the plane about the body's middle; along the depth about the lungs' if
                 the CT is longer than the grid, otherwise about its own                      (1)
    resampling   by equation (1) of `resample`, air outside                                   (2)
    intensity    clipped to [-1000, 1000] HU and rounded, as the networks see it              (3)

`Placement` says what was done, in numbers that undo it and in words.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from gct_jax.errors import InputError
from gct_jax.volumes.body import find_body
from gct_jax.volumes.ct import CT
from gct_jax.volumes.grid import (
    Grid,
    Shape,
    Spacing,
    affine_about,
    centre_offset_mm,
    grid_centre,
)
from gct_jax.volumes.intensity import AIR_HU
from gct_jax.volumes.resample import resample

LOWEST_HU, HIGHEST_HU = -1000, 1000
LEAST_LUNG_LITRES = 0.2  # less is a head, a limb or an empty field
NOTABLE_PADDING = NOTABLE_CUT = 0.1  # of the grid's depth


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a CT was put.

    Attributes:
      source: the CT's own grid.
      grid: the grid it was put on; it has the directions of the CT's axes.
      stored_order: of the CT's file, as `CT.stored_order`.
      notes: sentences on what was cut, padded or found.
    """

    source: Grid
    grid: Grid
    stored_order: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    def back(self, volume_hu: np.ndarray) -> CT:
        """The volume [depth, height, width] of `grid` on the CT's own grid, air where it had been
        cut."""
        ct = CT(np.asarray(volume_hu, np.float32), self.grid.affine)
        return dataclasses.replace(ct.resampled(self.source), stored_order=self.stored_order)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        order = None if self.stored_order is None else np.asarray(self.stored_order).tolist()
        return {
            "source_shape": list(self.source.shape),
            "source_affine": self.source.affine.tolist(),
            "grid_shape": list(self.grid.shape),
            "grid_affine": self.grid.affine.tolist(),
            "stored_order": order,
            "notes": list(self.notes),
        }

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Placement":
        """What `to_json` made."""

        def grid(name: str) -> Grid:
            depth, height, width = values[f"{name}_shape"]
            return Grid((depth, height, width), np.array(values[f"{name}_affine"], float))

        order = values["stored_order"]
        return Placement(
            grid("source"),
            grid("grid"),
            None if order is None else np.array(order),
            tuple(values["notes"]),
        )


def place(
    ct: CT, shape: Shape, spacing_mm: Spacing, depths: Sequence[int] = (), name: str = "the CT"
) -> Placement:
    """Equation (1): where a CT lies on a model's grid.

    Args:
      shape, spacing_mm: of the grid, (depth, height, width).
      depths: numbers of slices of which the smallest that covers the CT is taken instead of
        `shape`'s; the largest if none does.
      name: of the CT, for messages.

    Raises:
      InputError: it shows no lungs.
    """
    body = find_body(ct.volume_hu, ct.spacing_mm)
    if body is None or body.lung_litres < LEAST_LUNG_LITRES:
        litres = 0.0 if body is None else body.lung_litres
        raise InputError(
            f"{name}: no chest, it shows {litres:.2g} l of lung, less than {LEAST_LUNG_LITRES:g}"
        )
    length_mm = ct.grid.shape[0] * ct.spacing_mm[0]
    if depths:
        covering = [n for n in sorted(depths) if n * spacing_mm[0] >= length_mm - 1e-3]
        shape = (covering[0] if covering else max(depths), *shape[1:])
    field_mm = np.multiply(shape, spacing_mm)
    notes: list[str] = []
    offset = [0.0, *(sum(ends) / 2 for ends in body.box[1:])]
    if length_mm > field_mm[0] + 1e-3:
        assert body.lungs is not None  # there is lung
        room = (length_mm - field_mm[0]) / 2
        offset[0] = float(np.clip(sum(body.lungs) / 2, -room, room))
        if length_mm > (1 + NOTABLE_CUT) * field_mm[0]:
            notes.append(f"cut from {length_mm:.0f} to {field_mm[0]:.0f} mm along the depth")
        if body.lungs[1] - body.lungs[0] > field_mm[0]:
            notes.append("the lungs are longer than the grid and were cut")
    elif field_mm[0] - length_mm > NOTABLE_PADDING * field_mm[0]:
        notes.append(f"{length_mm:.0f} mm long, padded with air to {field_mm[0]:.0f} mm")
    for axis, side in ((1, "height"), (2, "width")):
        low, high = body.box[axis]
        if high - low > field_mm[axis] + 2 * spacing_mm[axis]:
            notes.append(
                f"the body's {side} of {high - low:.0f} mm was cut to {field_mm[axis]:.0f} mm"
            )
    return Placement(
        ct.grid, _moved(ct.grid, offset, shape, spacing_mm), ct.stored_order, tuple(notes)
    )


def _moved(source: Grid, offset_mm: Sequence[float], shape: Shape, spacing_mm: Spacing) -> Grid:
    """A grid with the axes of `source` whose centre lies `offset_mm` from its, along them."""
    directions = source.affine[:3, :3] / source.spacing_mm
    centre = grid_centre(source.affine, source.shape) + directions @ np.asarray(offset_mm)
    return Grid(shape, affine_about(centre, directions * spacing_mm, shape))


def on_grid(ct: CT, grid: Grid, slices: Sequence[int] | None = None) -> np.ndarray:
    """Equations (2) and (3).

    Args:
      grid: with the axes of the CT, as `place` makes it.
      slices: indices along its depth; None: all.

    Returns:
      int16 [depth, height, width] in HU.
    """
    volume = resample(
        ct.volume_hu,
        ct.spacing_mm,
        grid.shape,
        grid.spacing_mm,
        AIR_HU,
        offset_mm=centre_offset_mm(ct.grid, grid),
        slices=slices,
    )
    return np.rint(volume.clip(LOWEST_HU, HIGHEST_HU)).astype(np.int16)

"""A CT volume and where it lies: what the public functions take and return."""

import dataclasses
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gct_jax.errors import InputError
from gct_jax.runtime.files import replace_files_when_done
from gct_jax.volumes.grid import (
    Grid,
    Spacing,
    affine_spacing,
    centre_offset_mm,
    centred_affine,
)
from gct_jax.volumes.nifti import SCANNER_CODE, read_volume, write_placed_volume
from gct_jax.volumes.preview import save_preview

CT_FILES = ("volume.nii.gz", "preview.png", "metadata.json")
AXES = "depth (feet to head), height (front to back), width (right to left)"


@dataclass(frozen=True, eq=False)
class CT:
    """A CT volume in internal axes.

    Attributes:
      volume_hu: float32 [depth, height, width] in HU; depth runs from feet to head, height from
        front to back, width from the patient's right to left.
      affine: float64 [4, 4] with orthogonal axes, maps (depth, height, width, 1) to RAS+ mm.
      token_ids: int32 [time, height, width] if CT-ViT made the volume from them, otherwise None.
      metadata: what is known of it, as JSON holds it: prompt, seed, settings and versions of a
        generated one, file and placement of one that was read.
      notes: sentences on what was not done or read as it stands.
      stored_order: int [3, 2]; for each of depth, height and width the axis of the file it is
        stored along and 1 or -1 for its direction there. None: RAS.
      form_code: NIfTI's code of the placement; 0 if none is known.
    """

    volume_hu: np.ndarray
    affine: np.ndarray
    token_ids: np.ndarray | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    stored_order: np.ndarray | None = None
    form_code: int = SCANNER_CODE

    def __post_init__(self) -> None:
        volume, affine = np.asarray(self.volume_hu), np.asarray(self.affine)
        if volume.ndim != 3 or 0 in volume.shape:
            raise InputError(f"volume_hu of shape {volume.shape}; depth, height and width are 3")
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise InputError("affine must be 4 x 4 and finite")

    @staticmethod
    def from_array(volume_hu: np.ndarray, spacing_mm: Spacing) -> "CT":
        """A CT whose centre is the world's origin.

        Args:
          volume_hu: real numbers [depth, height, width] in HU, axes as in `CT`.
          spacing_mm: distance between voxel centres along the same axes.
        """
        volume = np.asarray(volume_hu, np.float32)
        return CT(volume, centred_affine(volume.shape, spacing_mm))

    @staticmethod
    def from_file(
        path: str | Path,
        *,
        form: str | None = None,
        spacing_mm: Spacing | None = None,
        trust_spacing: bool = False,
        require_orientation: bool = False,
    ) -> "CT":
        """Read a CT from `.nii`, `.nii.gz` or a pair `.hdr`, `.img`.

        Args:
          path: the file.
          form: "sform" or "qform" to trust that one where the file's two placements disagree.
          spacing_mm: (depth, height, width) to use instead of the file's.
          trust_spacing: accept a field of view that no chest CT has.
          require_orientation: refuse a file that states no orientation.

        Returns:
          The CT; `notes` says what was not read as it stands.

        Raises:
          InputError: see `gct_jax.volumes.nifti.read_volume`.
        """
        read = read_volume(
            path,
            form=form,
            spacing_mm=spacing_mm,
            trust_spacing=trust_spacing,
            require_orientation=require_orientation,
        )
        metadata = {
            "file": Path(path).name,
            "placement": read.form,
            "stored_axes": read.stored_axes,
            "notes": list(read.notes),
        }
        return CT(
            read.volume_hu,
            read.affine,
            metadata=metadata,
            notes=read.notes,
            stored_order=read.stored_order,
            form_code=read.form_code,
        )

    @property
    def spacing_mm(self) -> Spacing:
        """Distance between voxel centres along depth, height and width."""
        return affine_spacing(self.affine)

    @property
    def grid(self) -> Grid:
        """Where the voxels lie."""
        depth, height, width = self.volume_hu.shape
        return Grid((depth, height, width), self.affine)

    def resampled(self, grid: Grid) -> "CT":
        """The same CT on a grid whose axes have the same directions; air outside the CT.

        Raises:
          InputError: the axes have other directions.
        """
        from gct_jax.volumes.resample import resample  # loads SciPy, which reading does not need

        volume = resample(
            self.volume_hu,
            self.spacing_mm,
            grid.shape,
            grid.spacing_mm,
            offset_mm=centre_offset_mm(self.grid, grid),
        )
        return dataclasses.replace(self, volume_hu=volume, affine=grid.affine)

    def save(self, folder: str | Path) -> None:
        """Write `volume.nii.gz` (int16 HU), `preview.png` and `metadata.json`: all or none.

        Raises:
          InputError: the folder cannot be written to.
        """
        with replace_files_when_done(folder, CT_FILES) as temporary:
            self.write_files(temporary)

    def write_files(self, folder: Path) -> None:
        """The three files of `save` into a folder that exists, for a caller who moves them."""
        start = time.perf_counter()
        write_placed_volume(
            folder / "volume.nii.gz",
            self.volume_hu,
            self.affine,
            self.stored_order,
            self.form_code,
        )
        title = self.metadata.get("prompt") or self.metadata.get("file")
        save_preview(folder / "preview.png", self.volume_hu, self.spacing_mm, title)
        writing = time.perf_counter() - start
        metadata = {
            **self.metadata,
            "shape": self.volume_hu.shape,
            "axes": AXES,
            "spacing_mm": self.spacing_mm,
        }
        if "seconds" in metadata:
            seconds = dict(metadata.pop("seconds"))
            total = seconds.pop("total", 0.0) + writing
            seconds |= {"write": round(writing, 3), "total": round(total, 3)}
            metadata["seconds"] = seconds
        (folder / "metadata.json").write_text(
            json.dumps(metadata, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )

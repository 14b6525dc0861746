"""Draws a picture of the phantom: a normal chest and each of the 18 findings.

python -m launch.demo.phantom_montage --out phantom.png
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_pipelines.phantom.case import case_from_findings
from data_pipelines.phantom.findings import FINDINGS, Finding
from data_pipelines.phantom.render import render_with_findings
from gct_jax.runtime.exit_codes import exit_code
from gct_jax.runtime.files import replace_when_done
from gct_jax.runtime.numerics import prepare_jax
from gct_jax.volumes.grid import Grid
from gct_jax.volumes.intensity import WINDOWS_HU, window_to_uint8

GRID = Grid.centred((66, 256, 256), (4.5, 1.40625, 1.40625))
TILE = 240
COLUMNS = 5
ARROW = (255, 200, 0)
AXIAL, CORONAL, SAGITTAL = range(3)
# Seed, finding (None: a normal chest), view, window, whether an arrow points at it.
TILES: tuple[tuple[int, Finding | None, int, str, bool], ...] = (
    (4, None, AXIAL, "lung", False),
    (4, None, CORONAL, "mediastinal", False),
    (8, Finding("Pleural effusion", "left", None, "large", 0.75), AXIAL, "mediastinal", False),
    (12, Finding("Cardiomegaly", None, None, "large", 0.9), CORONAL, "mediastinal", False),
    (7, Finding("Pericardial effusion", None, None, "large", 0.8), AXIAL, "mediastinal", False),
    (21, Finding("Consolidation", "right", "lower lobe", "large", 0.75), AXIAL, "lung", False),
    (22, Finding("Lung opacity", "left", "upper lobe", "large", 0.8), AXIAL, "lung", True),
    (23, Finding("Atelectasis", "left", "lower lobe", "large", 0.8), AXIAL, "lung", True),
    (44, Finding("Lung nodule", "right", "upper lobe", "moderate", 0.6), AXIAL, "lung", True),
    (25, Finding("Emphysema", "bilateral", "upper lobe", "large", 0.9), CORONAL, "lung", False),
    (26, Finding("Mosaic attenuation pattern", None, None, "large", 0.9), AXIAL, "lung", False),
    (
        27,
        Finding("Interlobular septal thickening", "bilateral", None, "large", 0.9),
        AXIAL,
        "lung",
        False,
    ),
    (
        28,
        Finding("Peribronchial thickening", "bilateral", None, "large", 0.8),
        AXIAL,
        "lung",
        False,
    ),
    (29, Finding("Bronchiectasis", "left", "lower lobe", "large", 0.9), AXIAL, "lung", True),
    (
        30,
        Finding("Pulmonary fibrotic sequela", "right", "upper lobe", "large", 0.9),
        CORONAL,
        "lung",
        True,
    ),
    (
        31,
        Finding("Lymphadenopathy", "bilateral", "axillary", "large", 0.8),
        AXIAL,
        "mediastinal",
        False,
    ),
    (32, Finding("Hiatal hernia", None, None, "large", 0.8), AXIAL, "mediastinal", True),
    (
        33,
        Finding("Arterial wall calcification", None, None, "large", 0.9),
        SAGITTAL,
        "mediastinal",
        False,
    ),
    (
        34,
        Finding("Coronary artery wall calcification", None, None, "large", 0.8),
        AXIAL,
        "mediastinal",
        True,
    ),
    (37, Finding("Medical material", None, "pacemaker"), AXIAL, "mediastinal", False),
)


def main(argv: list[str] | None = None) -> int:
    """Writes the montage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("phantom.png"), help="PNG file to write")
    out = parser.parse_args(argv).out

    def command() -> None:
        prepare_jax("launch.demo.phantom_montage")
        tiles = [draw_tile(*tile) for tile in TILES]
        rows = [np.concatenate(tiles[i : i + COLUMNS], 1) for i in range(0, len(tiles), COLUMNS)]
        picture = Image.fromarray(np.concatenate(rows, 0))
        with replace_when_done(out) as path:
            picture.quantize(96).save(path, optimize=True)
        print(
            f"wrote {out}: {picture.width} x {picture.height}, {out.stat().st_size / 1000:.0f} kB"
        )

    return exit_code("launch.demo.phantom_montage", command)


def draw_tile(
    seed: int, finding: Finding | None, view: int, window: str, arrow: bool
) -> np.ndarray:
    """One labelled image [TILE, TILE, 3] uint8, the slice with most of the finding in it."""
    findings = (finding,) if finding else ()
    case = case_from_findings(seed, 66, ("female", "male")[seed % 2], findings)
    volume, masks = map(np.asarray, render_with_findings(case.anatomy, GRID))
    mask = masks[FINDINGS.index(finding.name)] if finding else np.zeros(GRID.shape, bool)
    others = tuple(axis for axis in range(3) if axis != view)
    at = int(mask.sum(others).argmax()) if mask.any() else GRID.shape[view] * 9 // 20
    # The patient's head is up in coronal and sagittal views.
    image, mask = (np.take(v, at, view)[:: 1 if view == AXIAL else -1] for v in (volume, mask))
    height = round(TILE * GRID.shape[0] * GRID.spacing_mm[0] / 360) if view != AXIAL else TILE
    tile = Image.new("L", (TILE, TILE))
    grey = Image.fromarray(window_to_uint8(image, WINDOWS_HU[window]))
    tile.paste(grey.resize((TILE, height), Image.Resampling.BICUBIC), (0, TILE - height))
    tile = tile.convert("RGB")
    canvas = ImageDraw.Draw(tile)
    if arrow:
        row, column = (np.mean(index) for index in np.nonzero(mask))
        _point_at(
            canvas, column * TILE / mask.shape[1], TILE - height + row * height / mask.shape[0]
        )
    name = finding.name if finding else "Normal"
    canvas.text((5, 3), name, fill="white", font=ImageFont.load_default(13))
    return np.asarray(tile)


def _point_at(canvas: ImageDraw.ImageDraw, x: float, y: float) -> None:
    """An arrow from below on the outer side."""
    away = np.array([1.0 if x > TILE / 2 else -1.0, 1.0]) / np.sqrt(2)
    tip, across = np.array([x, y]) + 10 * away, np.array([-away[1], away[0]])
    tail = tip + 22 * away
    head = [tip, tip + 9 * away + 4 * across, tip + 9 * away - 4 * across]
    canvas.line([tuple(tail), tuple(tip + 8 * away)], fill=ARROW, width=2)
    canvas.polygon([tuple(point) for point in head], fill=ARROW)


if __name__ == "__main__":
    raise SystemExit(main())

"""Preview pictures: three planes through the centre of a CT in three windows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gct_jax.runtime.files import replace_when_done
from gct_jax.volumes.intensity import WINDOWS_HU, window_to_uint8

WIDTH_PX = 1200
GAP_PX = 6
TEXT_COLOUR = (235, 235, 235)
LETTER_COLOUR = (255, 196, 64)
NAMES = ("axial", "coronal", "sagittal")
EDGES = ("RLAP", "RLSI", "APSI")  # letters at the left, right, top and bottom of each plane


def orthogonal_planes(
    volume: np.ndarray, spacing_mm: tuple[float, float, float]
) -> list[tuple[np.ndarray, tuple[float, float]]]:
    """Axial, coronal and sagittal plane through the centre, as radiologists look at them.

    Args:
      volume: [depth, height, width] in internal axes.
      spacing_mm: spacing along the same axes.

    Returns:
      Three pairs of a [rows, columns] plane and its size (height, width) in mm. The head is up in
      the coronal and sagittal planes, the front is up in the axial and left in the sagittal one,
      and the patient's right is on the left of the picture.
    """
    depth, height, width = np.multiply(volume.shape, spacing_mm).tolist()
    d, h, w = (n // 2 for n in volume.shape)
    return [
        (volume[d], (height, width)),
        (volume[::-1, h], (depth, width)),
        (volume[::-1, :, w], (depth, height)),
    ]


def tile_images(images: Sequence[Image.Image], columns: int, gap: int = GAP_PX) -> Image.Image:
    """Lay out pictures row by row, each centred in a cell of the largest size, on black."""
    cell_width = max(image.width for image in images) + gap
    cell_height = max(image.height for image in images) + gap
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * cell_width + gap, rows * cell_height + gap))
    for i, image in enumerate(images):
        x = gap + i % columns * cell_width + (cell_width - gap - image.width) // 2
        y = gap + i // columns * cell_height + (cell_height - gap - image.height) // 2
        sheet.paste(image, (x, y))
    return sheet


def render_preview(
    volume_hu: np.ndarray, spacing_mm: tuple[float, float, float], title: str | None = None
) -> Image.Image:
    """Draw the planes (columns) in every window of WINDOWS_HU (rows), all at the same scale.

    Args:
      volume_hu: [depth, height, width] in HU, internal axes.
      spacing_mm: spacing along the same axes.
      title: one line above the tiles; shortened if it does not fit.
    """
    planes = orthogonal_planes(volume_hu, spacing_mm)
    cell = (WIDTH_PX - 4 * GAP_PX) // 3
    px_per_mm = cell / max(max(size_mm) for _, size_mm in planes)
    tiles = []
    for window, limits in WINDOWS_HU.items():
        for (plane, size_mm), name, edges in zip(planes, NAMES, EDGES, strict=True):
            rows, columns = (max(1, round(length * px_per_mm)) for length in size_mm)
            # interpolate in HU, then window: the other way round softens every edge
            image = Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32))
            image = image.resize((columns, rows), Image.Resampling.BICUBIC)
            grey = Image.fromarray(window_to_uint8(np.asarray(image), limits))
            tile = Image.new("RGB", (cell, cell))
            tile.paste(grey, ((cell - columns) // 2, (cell - rows) // 2))
            _annotate(tile, f"{window} [{limits[0]:g}, {limits[1]:g}] HU", name, edges)
            tiles.append(tile)
    sheet = tile_images(tiles, columns=len(planes))
    return _with_title(sheet, title) if title else sheet


def save_preview(
    path: str | Path,
    volume_hu: np.ndarray,
    spacing_mm: tuple[float, float, float],
    title: str | None = None,
) -> None:
    """Write `render_preview` as a PNG, whole or not at all.

    Raises:
      InputError: the path cannot be written.
    """
    picture = render_preview(volume_hu, spacing_mm, title)
    with replace_when_done(path) as temporary:
        picture.save(temporary, format="PNG")


def _annotate(tile: Image.Image, window: str, plane: str, edges: str) -> None:
    small, large = ImageFont.load_default(14), ImageFont.load_default(17)
    width, height = tile.size
    _outlined(tile, (8, 6), plane, TEXT_COLOUR, small, "la")
    _outlined(tile, (8, height - 6), window, TEXT_COLOUR, small, "ls")
    left, right, top, bottom = tuple(edges)
    _outlined(tile, (8, height // 2), left, LETTER_COLOUR, large, "lm")
    _outlined(tile, (width - 8, height // 2), right, LETTER_COLOUR, large, "rm")
    _outlined(tile, (width // 2, 8), top, LETTER_COLOUR, large, "mt")
    _outlined(tile, (width // 2, height - 8), bottom, LETTER_COLOUR, large, "mb")


def _outlined(
    tile: Image.Image,
    place: tuple[int, int],
    text: str,
    colour: tuple[int, int, int],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    anchor: str,
) -> None:
    """Text with a black rim, readable on bone as on air."""
    ImageDraw.Draw(tile).text(
        place, text, colour, font, anchor=anchor, stroke_width=2, stroke_fill=(0, 0, 0)
    )


def _with_title(sheet: Image.Image, title: str) -> Image.Image:
    font = ImageFont.load_default(18)
    room = sheet.width - 4 * GAP_PX
    shown = " ".join(title.split())
    while font.getlength(shown) > room:
        shown = shown[:-2].rstrip() + "…"
    titled = Image.new("RGB", (sheet.width, sheet.height + 36))
    ImageDraw.Draw(titled).text((2 * GAP_PX, 22), shown, TEXT_COLOUR, font, anchor="lm")
    titled.paste(sheet, (0, 36))
    return titled

"""The results as a picture: a pair of bars per case, for seconds and for memory."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from gct_jax.runtime.files import replace_when_done

WIDTH, LABEL, PANEL, ROW, TOP = 1500, 330, 520, 46, 78
BAR = 17
OURS, PEER, KILLED = (31, 119, 180), (176, 176, 176), (214, 96, 77)
INK, GRID = (40, 40, 40), (225, 225, 225)
DECADES = 4  # that the shorter bars may fall below the longest before they vanish


def save_chart(path: Path, results: Mapping[str, Any]) -> None:
    """Write a PNG with logarithmic bars."""
    rows = results["cases"]
    picture = Image.new("RGB", (WIDTH, TOP + ROW * len(rows) + 46), "white")
    draw = ImageDraw.Draw(picture)
    font, bold = ImageFont.load_default(15), ImageFont.load_default(19)
    draw.text((14, 10), f"{results['run']['device']}, {results['run']['dtype']}", INK, bold)
    for i, row in enumerate(rows):
        draw.text((14, TOP + ROW * i + ROW // 2), row["title"], INK, font, anchor="lm")
    left = LABEL
    for heading, key in (("seconds per call", "best_seconds"), ("peak memory, MB", "peak_mb")):
        draw.text((left, TOP - 26), heading, INK, font, anchor="lm")
        _panel(draw, font, rows, key, left)
        left += PANEL + 65
    foot = TOP + ROW * len(rows) + 22
    for x, colour, name in (
        (LABEL, OURS, "gct_jax"),
        (LABEL + 130, PEER, "PyTorch peer"),
        (LABEL + 300, KILLED, "peer, killed when it held this much"),
    ):
        draw.rectangle((x, foot - 7, x + 14, foot + 7), colour)
        draw.text((x + 22, foot), name, INK, font, anchor="lm")
    with replace_when_done(path) as temporary:
        picture.save(temporary, format="PNG")


def _panel(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    rows: Sequence[Mapping[str, Any]],
    key: str,
    left: int,
) -> None:
    values = [side[key] for row in rows for side in _sides(row) if side.get(key)]
    if not values:
        return
    high = math.ceil(math.log10(max(values)))
    low = max(math.floor(math.log10(min(values))), high - DECADES)
    scale = (PANEL - 70) / max(1, high - low)
    for decade in range(low, high + 1):
        x = left + (decade - low) * scale
        draw.line((x, TOP - 8, x, TOP + ROW * len(rows)), GRID)
        draw.text((x, TOP - 9), f"{10.0**decade:g}", INK, ImageFont.load_default(11), anchor="mb")
    for i, row in enumerate(rows):
        for j, side in enumerate(_sides(row)):
            value = side.get(key)
            y = TOP + ROW * i + 5 + j * (BAR + 2)
            killed = side.get("status", "ok") != "ok"
            colour = OURS if j == 0 else KILLED if killed else PEER
            if value:
                end = left + max(2.0, (math.log10(value) - low) * scale)
                draw.rectangle((left, y, end, y + BAR), colour)
                shown = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
                draw.text((end + 5, y + BAR / 2), shown, INK, font, anchor="lm")
            elif killed:
                draw.text((left + 4, y + BAR / 2), side["status"], KILLED, font, anchor="lm")


def _sides(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row["ours"], row["peer"]] if "peer" in row else [row["ours"]]

"""Line charts as PNG files, drawn with Pillow, which the package needs anyway."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from gct_jax.runtime.files import replace_when_done

COLOURS = ("#1f5fa8", "#c8501e", "#2d8a4e", "#7a4fa3", "#555555")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 520, 416, 70, 20, 56, 55


class Panel(NamedTuple):
    """One chart: title, label of the x axis, points (x, y) of each named line, horizontal lines
    by name, and whether y is logarithmic; x always is."""

    title: str
    x_label: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    levels: Mapping[str, float]
    log_y: bool = False


def save_line_charts(path: Path, panels: Sequence[Panel]) -> None:
    """Panels side by side."""
    picture = Image.new("RGB", (WIDTH * len(panels), HEIGHT), "white")
    for number, panel in enumerate(panels):
        picture.paste(_draw(panel), (number * WIDTH, 0))
    with replace_when_done(path) as temporary:
        picture.save(temporary)


def _draw(panel: Panel) -> Image.Image:
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    points = [point for line in panel.lines.values() for point in line]
    xs = sorted({x for x, _ in points})
    values = [y for _, y in points] + list(panel.levels.values())
    y_ticks = _log_ticks(values) if panel.log_y else _even_ticks(values)

    def place(x: float, y: float) -> tuple[float, float]:
        across = math.log(x / xs[0]) / math.log(xs[-1] / xs[0])
        low, high = y_ticks[0], y_ticks[-1]
        if panel.log_y:
            y, low, high = math.log(y), math.log(low), math.log(high)
        up = (y - low) / (high - low)
        return (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM),
        )

    for tick in y_ticks:
        (x0, y), (x1, _) = place(xs[0], tick), place(xs[-1], tick)
        draw.line([(x0, y), (x1, y)], fill="#dddddd")
        draw.text((x0 - 8, y), f"{tick:g}", fill="black", font=font, anchor="rm")
    free = 0.0
    for tick in xs:
        x, y = place(tick, y_ticks[0])
        half = draw.textlength(f"{tick:g}", font) / 2
        if x - half > free:  # else it would touch the number before
            draw.text((x, y + 6), f"{tick:g}", fill="black", font=font, anchor="mt")
            free = x + half + 2
    draw.text((LEFT, 12), panel.title, fill="black", font=ImageFont.load_default(14))
    draw.text((WIDTH / 2, HEIGHT - 18), panel.x_label, fill="black", font=font, anchor="mm")
    legend = []
    for colour, (name, line) in zip(COLOURS, panel.lines.items(), strict=False):
        places = [place(*point) for point in line]
        draw.line(places, fill=colour, width=2)
        for x, y in places:
            draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=colour)
        legend.append((name, colour))
    for colour, (name, level) in zip(reversed(COLOURS), panel.levels.items(), strict=False):
        (x0, y), (x1, _) = place(xs[0], level), place(xs[-1], level)
        for start in range(int(x0), int(x1), 12):
            draw.line([(start, y), (start + 6, y)], fill=colour, width=2)
        legend.append((f"{name} (dashed)", colour))
    x = float(LEFT)
    for name, colour in legend:
        draw.text((x, 34), name, fill=colour, font=font)
        x += draw.textlength(name, font) + 16
    return image


def _even_ticks(values: Sequence[float]) -> list[float]:
    """Round numbers whose range holds all values."""
    low, high = min(values), max(values)
    rough = (high - low or abs(high) or 1.0) / 5
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(step * i, 10) for i in range(first, max(last, first + 1) + 1)]


def _log_ticks(values: Sequence[float]) -> list[float]:
    """Numbers of the series 1, 2, 5, 10, ... whose range holds all positive values."""
    # A decade more at either end: log10 of a number just below a power of ten is that power.
    first = math.floor(math.log10(min(values))) - 1
    last = math.ceil(math.log10(max(values))) + 1
    ticks = [float(f"{factor}e{power}") for power in range(first, last) for factor in (1, 2, 5)]
    below = max(tick for tick in ticks if tick <= min(values))
    above = min(tick for tick in ticks if tick >= max(values) and tick > below)
    return [tick for tick in ticks if below <= tick <= above]

"""Line charts side by side, as a PNG file."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gct_jax.runtime.files import replace_when_done

DASHED = ("#555555", "#7a4fa3")


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
    # A figure of its own, without pyplot, leaves the caller's backend and figures alone.
    figure = Figure(figsize=(5.2 * len(panels), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, points in panel.lines.items():
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name)
        for colour, (name, level) in zip(itertools.cycle(DASHED), panel.levels.items()):
            axes.axhline(level, linestyle="--", color=colour, label=name)
        axes.set(title=panel.title, xlabel=panel.x_label, xscale="log")
        if panel.log_y:
            axes.set_yscale("log")
        ticks = sorted({x for points in panel.lines.values() for x, _ in points})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.grid(color="#dddddd")
        axes.legend()
    with replace_when_done(path) as temporary, matplotlib.rc_context({"savefig.dpi": 100}):
        figure.savefig(temporary, format="png")

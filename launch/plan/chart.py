"""Predicted weak scaling against the number of chips, as a picture."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gct_jax.chips import Chip
from gct_jax.runtime.files import replace_when_done
from launch.plan.page import Row
from launch.plan.roofline import Facts

AIM = 0.9


def save_chart(path: Path, slices: Sequence[tuple[int, Chip, Sequence[Row]]]) -> None:
    """Write a PNG: for each program its best mesh on each slice, overlapped with the network
    (full lines) and not (dashed)."""
    figure = Figure(figsize=(8, 5), layout="constrained", dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names = dict.fromkeys(row.program for _, _, rows in slices for row in rows)
    for number, name in enumerate(names):
        points = [
            (chips, min(seconds, key=lambda one: one.step))
            for chips, chip, rows in slices
            if (
                seconds := [
                    row.found.seconds(chip)
                    for row in rows
                    if row.program == name and isinstance(row.found, Facts)
                ]
            )
        ]
        if not points:
            continue
        chips, best = zip(*points, strict=True)
        color = f"C{number}"
        axes.plot(chips, [s.weak_scaling for s in best], "o-", color=color, label=name)
        axes.plot(chips, [s.weak_scaling_alone for s in best], "o--", color=color)
    axes.axhline(AIM, color="gray", linewidth=0.8)
    axes.set(xscale="log", xlabel="chips", ylabel="predicted weak scaling", ylim=(0, 1.05))
    axes.set_title("full: the network overlaps with computing; dashed: it does not")
    axes.legend()
    with replace_when_done(path) as temporary:
        figure.savefig(temporary, format="png")

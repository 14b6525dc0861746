"""The results as a picture: a pair of bars per case, for seconds and for memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gct_jax.runtime.files import replace_when_done

OURS, PEER, KILLED = "#1f77b4", "#b0b0b0", "#d6604d"
BAR = 0.38  # of the distance between two cases
PANELS = (("seconds per call", "best_seconds"), ("peak memory, MB", "peak_mb"))
DECADES = 4  # that the shorter bars may fall below the longest before they vanish


def save_chart(path: Path, results: Mapping[str, Any]) -> None:
    """Write a PNG with logarithmic bars."""
    figure = draw(results)
    with replace_when_done(path) as temporary:
        figure.savefig(temporary, format="png")


def draw(results: Mapping[str, Any]) -> Figure:
    """The chart: two panels, a row per case from top to bottom, ours above the peer's."""
    rows = results["cases"]
    figure = Figure(figsize=(15, 1.3 + 0.46 * len(rows)), layout="constrained", dpi=100)
    FigureCanvasAgg(figure)
    figure.suptitle(f"{results['run']['device']}, {results['run']['dtype']}")
    for axes, (heading, key) in zip(figure.subplots(1, 2, sharey=True), PANELS, strict=True):
        for number, row in enumerate(rows):
            for i, side in enumerate(_sides(row)):
                _bar(axes, number + (i - 0.5) * BAR, side, key, ours=i == 0)
        axes.set(title=heading, xscale="log", ylim=(len(rows) - 0.5, -0.5))
        axes.set_yticks(range(len(rows)), [row["title"] for row in rows])
        values = [side[key] for row in rows for side in _sides(row) if side.get(key)]
        if values:
            axes.set_xlim(max(min(values) / 2, max(values) / 10**DECADES), max(values) * 4)
        axes.grid(axis="x", color="#e1e1e1")
        axes.set_axisbelow(True)
    legend = {"gct_jax": OURS, "PyTorch peer": PEER, "peer, killed when it held this much": KILLED}
    for name, colour in legend.items():
        figure.axes[0].bar(0, 0, color=colour, label=name)
    figure.legend(loc="outside lower center", ncols=len(legend), frameon=False)
    return figure


def _bar(axes: Axes, y: float, side: Mapping[str, Any], key: str, *, ours: bool) -> None:
    value, killed = side.get(key), side.get("status", "ok") != "ok"
    if value:
        bar = axes.barh(y, value, BAR, color=OURS if ours else KILLED if killed else PEER)
        axes.bar_label(bar, [f"{value:,.0f}" if value >= 100 else f"{value:.3g}"], padding=4)
    elif killed:
        across = axes.get_yaxis_transform()  # x as a share of the panel: there is no value
        axes.text(0.01, y, side["status"], color=KILLED, va="center", transform=across)


def _sides(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row["ours"], row["peer"]] if "peer" in row else [row["ours"]]

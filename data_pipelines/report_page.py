"""The report of a preparation as one HTML page that needs no other file."""

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from data_pipelines.prepared_case import HISTOGRAM_HU
from data_pipelines.report import Summary, kind_of, kinds, thumbnails
from gct_jax.volumes.grid import by

MOST_ROWS = 200  # of a table; report.json has all
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem;
       color: #1c2430; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { border-bottom: 1px solid #d8dee6; padding: .25rem .8rem .25rem 0; text-align: left;
         vertical-align: top; overflow-wrap: anywhere }
td.n, th.n { text-align: right } img { max-width: 100% }
.thumbs { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: .8rem }
figure { margin: 0 } figcaption { font-size: 12px; color: #56606e; overflow-wrap: anywhere }
.bar { background: #2f6db5; height: .7rem; display: inline-block }
summary { cursor: pointer }
"""


def page(summary: Summary, shown: Callable[[str], str]) -> str:
    """HTML. `shown` turns a case's name in records into the one to show."""
    about = summary.about
    depths = f" (depths {', '.join(map(str, about['depths']))})" if about["depths"] else ""
    total = sum(split["cases"] for split in summary.splits.values())
    parts = [
        f"<h1>{total} CTs prepared, {len(summary.rejected)} rejected</h1>",
        f"<p>Source {escape(about['source'])}; {escape(by(tuple(about['shape'])))} voxels of "
        f"{escape(by(tuple(about['spacing_mm'])))} mm{escape(depths)}.</p>",
        _table(
            ("split", "CTs", "patients", "MB"),
            [
                (name, split["cases"], split["patients"], round(split["bytes"] / 1e6, 1))
                for name, split in summary.splits.items()
            ],
        ),
        "<p>Names of files are hidden unless their source is public; the command that prepared "
        "this shows them with --names.</p>",
        _reasons("Rejected", summary.rejected, shown),
        _reasons(
            "Mended, cut or noted",
            [[case["case"], note] for case in summary.cases for note in case["notes"]],
            shown,
        ),
        _copies(summary.copies, shown),
        "<h2>Distributions</h2>",
        f'<img alt="histograms" src="data:image/png;base64,{_histograms(summary.cases)}">'
        if summary.cases
        else "<p>There is no case.</p>",
        _prevalence(summary),
        "<h2>Some of them</h2>",
        "<p>The middle coronal slice in three windows: all, lung, mediastinum. The patient's right "
        "is on the left.</p>",
        '<div class="thumbs">',
        *(
            f'<figure><img alt="" src="data:image/png;base64,{escape(case["thumbnail"])}">'
            f"<figcaption>{escape(shown(case['case']))}</figcaption></figure>"
            for case in thumbnails(summary)
        ),
        "</div>",
        _listing(summary.listing),
    ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Prepared CTs</title>'
        f"<style>{STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Cells that are numbers stand on the right."""

    def cell(tag: str, value: Any) -> str:
        number = ' class="n"' if isinstance(value, (int, float)) else ""
        return f"<{tag}{number}>{escape(str(value))}</{tag}>"

    body = "".join(f"<tr>{''.join(cell('td', value) for value in row)}</tr>" for row in rows)
    return f"<table><tr>{''.join(cell('th', name) for name in header)}</tr>{body}</table>"


def _reasons(title: str, pairs: Sequence[Sequence[str]], shown: Callable[[str], str]) -> str:
    if not pairs:
        return f"<h2>{title}</h2><p>None.</p>"
    parts = [f"<h2>{title}: {len(pairs)}</h2>"]
    for kind, count in kinds([reason for _, reason in pairs]):
        rows = [(shown(name), reason) for name, reason in pairs if kind_of(reason) == kind]
        more = "<p>report.json has all.</p>" if count > MOST_ROWS else ""
        parts.append(
            f"<details><summary>{count} x {escape(kind)}</summary>"
            f"{_table(('file', 'reason'), rows[:MOST_ROWS])}{more}</details>"
        )
    return "".join(parts)


def _copies(copies: Sequence[Sequence[str]], shown: Callable[[str], str]) -> str:
    if not copies:
        return ""
    rows = [(", ".join(shown(name) for name in group),) for group in copies[:MOST_ROWS]]
    return (
        f"<h2>The same voxels under several names: {len(copies)}</h2><p>Where one of them is held "
        f"out, the others were taken out of the training split.</p>{_table(('CTs',), rows)}"
    )


def _prevalence(summary: Summary) -> str:
    known = {name: pair for name, pair in summary.prevalence.items() if pair[1]}
    if not known:
        return "<h2>Findings</h2><p>The source has no labels.</p>"
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="n">{count} of {of}</td>'
        f'<td class="n">{100 * count / of:.1f} %</td>'
        f'<td><span class="bar" style="width:{round(160 * count / of)}px"></span></td></tr>'
        for name, (count, of) in known.items()
    )
    return f"<h2>Findings</h2><table>{rows}</table>"


def _listing(facts: dict[str, Any]) -> str:
    if not facts:
        return ""
    rows = [(name, str(value)) for name, value in facts.items()]
    return f"<h2>What was read</h2>{_table(('', ''), rows)}"


def _histograms(cases: Sequence[dict[str, Any]]) -> str:
    """Base64 of a PNG of six histograms."""
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    spacing = np.array([case["source_spacing_mm"] for case in cases])
    ages = [case["age_years"] for case in cases if case["age_years"] is not None]
    panels = (
        ("slice spacing of the files, mm", spacing[:, 0]),
        ("pixel spacing of the files, mm", spacing[:, 1]),
        ("slices of the files", [case["source_shape"][0] for case in cases]),
        ("age, years", ages),
        ("words of the report", [case["words"] for case in cases]),
    )
    for axis, (title, values) in zip(axes, panels, strict=False):
        axis.hist(values, bins=30, color="#2f6db5")
        axis.set_title(title, fontsize=10)
        axis.set_ylabel("CTs")
    low, high, bins = HISTOGRAM_HU
    shares = np.sum([case["hu"] for case in cases], axis=0, dtype=float)
    edges = np.linspace(low, high, bins + 1)
    axes[5].stairs(shares / shares.sum(), edges, fill=True, color="#2f6db5")
    axes[5].set_yscale("log")
    axes[5].set_title("HU after preparation, share of voxels", fontsize=10)
    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=100, metadata={"Software": None})
        return base64.b64encode(file.getvalue()).decode()

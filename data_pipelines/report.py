"""What came out of a preparation, as numbers (report.json) and as a page (report.html).

Neither holds a report's text, an age beside a name, or a name that says who somebody is, unless
names were asked for.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.labels import LABELS
from data_pipelines.ledger import Ledger
from gct_jax.runtime.files import replace_when_done

PRIVATE = ("patient", "content", "thumbnail")


class Summary(NamedTuple):
    """What the report says.

    splits: of each, cases, patients and bytes.
    cases: facts of every case, see `data_pipelines.prepared_case`, with its split.
    rejected: [name, reason].
    copies: groups of cases with the same voxels.
    about: what was prepared, and on what grid.
    listing: facts of the source, such as hashes of its tables.
    """

    splits: dict[str, dict[str, int]]
    cases: list[dict[str, Any]]
    rejected: list[list[str]]
    copies: list[list[str]]
    about: dict[str, Any]
    listing: dict[str, Any]

    @property
    def prevalence(self) -> dict[str, tuple[int, int]]:
        """Of each finding, how many cases have it, and of how many it is known."""
        known = [case["labels"] for case in self.cases if case["labels"] is not None]
        columns = np.array(known, int).reshape(-1, len(LABELS)).T
        return {
            name: (int((column == 1).sum()), int((column >= 0).sum()))
            for name, column in zip(LABELS, columns, strict=True)
        }


def summarize(
    ledger: Ledger,
    listed: Sequence[Sequence[str]],
    copies: Sequence[Sequence[str]],
    listing: Mapping[str, Any],
) -> Summary:
    """Of a ledger whose shards are all done.

    listed: [name, reason] of what was rejected before a voxel was read.
    """
    splits: dict[str, dict[str, int]] = {}
    cases: list[dict[str, Any]] = []
    rejected = [list(pair) for pair in listed]
    for split in dict.fromkeys(shard.split for shard in ledger.shards):
        infos = ledger.infos(split)
        own = [{**facts, "split": split} for info in infos for facts in info.facts]
        cases += own
        rejected += [pair for info in infos for pair in info.rejected]
        splits[split] = {
            "cases": len(own),
            "patients": len({case["patient"] for case in own}),
            "bytes": sum(info.bytes for info in infos),
        }
    about = {name: ledger.about[name] for name in ("shape", "spacing_mm", "depths")}
    about["source"] = ledger.about["data"]["source"]
    return Summary(
        splits, cases, sorted(rejected), [list(group) for group in copies], about, dict(listing)
    )


def kind_of(reason: str) -> str:
    """A reason with its numbers and quotations left out: what counts as the same kind."""
    return re.sub(r"-?\b\d+(\.\d+)?\b(?!-D)", "N", re.sub(r"'[^']*'", "'...'", reason))


def kinds(reasons: Sequence[str]) -> list[tuple[str, int]]:
    """Kinds of reasons and how often each came, the most frequent first."""
    return Counter(kind_of(reason) for reason in reasons).most_common()


def write_report(folder: Path, summary: Summary, names: Mapping[str, str]) -> None:
    """Write report.json and report.html; `names` to show instead of those in records."""
    from data_pipelines.report_page import page

    def shown(name: str) -> str:
        return names.get(name, name)

    values = {
        "splits": summary.splits,
        "rejected": [[shown(name), reason] for name, reason in summary.rejected],
        "noted": [[shown(case["case"]), note] for case in summary.cases for note in case["notes"]],
        "same_voxels": [[shown(name) for name in group] for group in summary.copies],
        "prevalence": summary.prevalence,
        "prepared": summary.about,
        "listing": summary.listing,
        "cases": [
            {name: value for name, value in case.items() if name not in PRIVATE}
            for case in summary.cases
        ],
    }
    with replace_when_done(folder / "report.json") as temporary:
        temporary.write_text(
            json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    with replace_when_done(folder / "report.html") as temporary:
        temporary.write_text(page(summary, shown), encoding="utf-8")


def thumbnails(summary: Summary) -> list[dict[str, Any]]:
    """The cases of which a picture was made."""
    return [case for case in summary.cases if case["thumbnail"]]

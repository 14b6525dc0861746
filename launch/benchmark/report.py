"""From measured rounds to the numbers of a row, and rows as a table."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launch.benchmark.cases import Case
from launch.markdown import markdown_table

MEGABYTE = 1e6
NOT_MEASURED = "-"


def side_of(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One side's numbers over its rounds, or why there are none.

    Peak memory is the highest of all rounds: the process's, compilation included and (running)
    without, and the accelerator's where it says.
    """
    bad = [answer for answer in rounds if answer["status"] != "ok"]
    if bad:
        peak = max(answer["peak_bytes"] for answer in rounds)
        detail = bad[0]["detail"]
        return {"status": bad[0]["status"], "peak_mb": peak / MEGABYTE, "detail": detail}
    seconds = [value for answer in rounds for value in answer["seconds"]]
    side = {
        "status": "ok",
        "seconds": seconds,
        "best_seconds": min(seconds),
        "median_seconds": statistics.median(seconds),
        "peak_mb": max(answer["peak_bytes"] for answer in rounds) / MEGABYTE,
    }
    on_device = [answer.get("device", {}).get("peak_device_bytes") or 0 for answer in rounds]
    if all(on_device):
        side["peak_device_mb"] = max(on_device) / MEGABYTE
    if all("running_peak_bytes" in answer for answer in rounds):
        running = max(answer["running_peak_bytes"] for answer in rounds)
        side["running_peak_mb"] = running / MEGABYTE
    for name in ("first_seconds", "compile_seconds", "stages"):
        if name in rounds[0]:
            side[name] = rounds[0][name]
    return side


def row_of(
    case: Case,
    ours: Sequence[Mapping[str, Any]],
    peer: Sequence[Mapping[str, Any]],
    flops: Mapping[str, float] | None,
    ceiling: Mapping[str, float],
    difference: Mapping[str, float] | None,
) -> dict[str, Any]:
    """All numbers of a case.

    Args:
      ours, peer: workers' answers, one per round; no peer if there is nothing to compare with.
      flops: operations of one call in matrix products and convolutions.
      ceiling: operations per second of both.
      difference: of the outputs.
    """
    row: dict[str, Any] = {"name": case.name, "title": case.title, "ours": side_of(ours)}
    if flops is not None:
        row["gflop"] = {kind: value / 1e9 for kind, value in flops.items()}
        floor = sum(flops[kind] / ceiling[kind] for kind in flops)
        row["floor_seconds"] = floor
        _add_rate(row["ours"], sum(flops.values()), floor)
    if peer:
        row["peer"] = {"package": case.peer, **side_of(peer)}
        if "flops" in peer[0]:
            _add_rate(row["peer"], peer[0]["flops"])
        if row["ours"]["status"] == row["peer"]["status"] == "ok":
            best, memory = "best_seconds", "peak_mb"
            row["times_faster"] = row["peer"][best] / row["ours"][best]
            row["times_smaller"] = row["peer"][memory] / row["ours"][memory]
    if difference is not None:
        row["difference"] = dict(difference)
    return row


def _add_rate(side: dict[str, Any], flops: float, floor: float | None = None) -> None:
    if side["status"] != "ok":
        return
    side["gflop_per_call"] = flops / 1e9
    side["gflop_per_second"] = flops / 1e9 / side["best_seconds"]
    if floor is not None:
        side["share_of_ceiling"] = floor / side["best_seconds"]


def compare(case: Case, ours: Path, peer: Path) -> dict[str, float] | None:
    """How far apart the outputs in two .npy files are; None if one side gave none.

    Returns:
      {"ids_differ", "ids"} for token ids, else {"max_abs", "largest"}: the largest difference, and
      the largest number that the peer gave.
    """
    if not (ours.exists() and peer.exists()):
        return None
    mine, theirs = np.load(ours, mmap_mode="r"), np.load(peer, mmap_mode="r")
    if case.task == "decode" or (case.part == "superres" and case.task == "forward"):
        theirs = np.moveaxis(theirs, 1, -1)
    theirs = theirs.reshape(mine.shape)
    if case.task == "encode":
        return {"ids_differ": int(np.count_nonzero(mine != theirs)), "ids": mine.size}
    return {
        "max_abs": float(np.max(np.abs(mine - theirs))),
        "largest": float(np.max(np.abs(theirs))),
    }


def table(results: Mapping[str, Any]) -> str:
    """The rows as a Markdown table under a line about the machine."""
    run, ceiling = results["run"], results["ceiling"]
    head = [
        "case",
        "seconds: ours",
        "peer",
        "times faster",
        "MB: ours",
        "peer",
        "times smaller",
        "GFLOP",
        "GFLOP/s: ours",
        "peer",
        "floor, s",
        "of ceiling",
        "outputs differ by",
    ]
    matmul, convolution = ceiling["matmul"] / 1e9, ceiling["convolution"] / 1e9
    note = (
        f"{run['device']}, {run['cores']} cores, {run['dtype']}; best of {run['repeats']} rounds "
        f"of {run['calls']} calls. Ceiling ({ceiling['source']}): {matmul:,.0f} GFLOP/s in matrix "
        f"products, {convolution:,.0f} in convolutions. GFLOP are those of our program's trace, "
        "matrix products and convolutions; the peer's GFLOP/s are by PyTorch's count of its own. "
        "Floor: GFLOP over ceiling."
    )
    rows = [_cells(row) for row in results["cases"]]
    return f"{note}\n\n{markdown_table([head, *rows])}\n"


def _cells(row: Mapping[str, Any]) -> list[str]:
    ours, peer = row["ours"], row.get("peer", {})
    return [
        row["title"],
        _time(ours),
        _time(peer),
        _number(row.get("times_faster"), ".1f"),
        _memory(ours),
        _memory(peer),
        _number(row.get("times_smaller"), ".1f"),
        _number(ours.get("gflop_per_call"), ",.1f"),
        _number(ours.get("gflop_per_second"), ",.0f"),
        _number(peer.get("gflop_per_second"), ",.0f"),
        _number(row.get("floor_seconds"), ".3g"),
        _number(ours.get("share_of_ceiling"), ".0%"),
        _difference(row.get("difference")),
    ]


def _time(side: Mapping[str, Any]) -> str:
    if side.get("status", "ok") != "ok":
        return str(side["status"])
    return _number(side.get("best_seconds"), ".3g")


def _memory(side: Mapping[str, Any]) -> str:
    memory = side.get("peak_device_mb", side.get("peak_mb"))
    return ("> " if side.get("status", "ok") != "ok" else "") + _number(memory, ",.0f")


def _difference(difference: Mapping[str, float] | None) -> str:
    if difference is None:
        return NOT_MEASURED
    if "ids" in difference:
        return f"{difference['ids_differ']} of {difference['ids']:,} ids"
    return f"{difference['max_abs']:.1e} of {difference['largest']:.2g}"


def _number(value: float | None, form: str) -> str:
    return NOT_MEASURED if value is None else format(value, form)

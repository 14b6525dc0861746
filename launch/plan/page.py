"""The page of a plan: one row for each program, the arithmetic below it, and what moves most."""

import collections
from collections.abc import Sequence
from typing import NamedTuple

from gct_jax.chips import Chip
from launch.markdown import markdown_table
from launch.plan.hlo import Instruction
from launch.plan.roofline import Facts, Refused

LONGEST_SOURCE = 90


class Row(NamedTuple):
    """A program on a mesh: its name, the mesh (data, fsdp, tensor), rows of its batch, and what the
    compiler says."""

    program: str
    mesh: tuple[int, ...]
    rows: int
    found: Facts | Refused


HEADER = (
    *("program", "mesh", "rows", "GB of a chip", "TFLOP", "GB moved", "GB counted", "GB received"),
    *("compute, ms", "memory, ms", "network, ms", "step, ms", "bound by"),
    *("utilisation", "weak scaling", "not overlapped", "collectives"),
)


def page(
    title: str,
    command: str,
    kind: str,
    chip: Chip,
    chips: int,
    rows: Sequence[Row],
    dollars_per_chip_hour: float | None = None,
) -> str:
    """The page as Markdown."""
    header = (*HEADER, "dollars a 1,000 steps") if dollars_per_chip_hour is not None else HEADER
    table: list[tuple[str, ...]] = [header]
    for row in rows:
        cells = _cells(row, chip)
        if dollars_per_chip_hour is not None:
            cells = (*cells, _dollars(row, chip, chips, dollars_per_chip_hour))
        table.append(cells)
    return "\n".join(
        [
            f"# {title}",
            "",
            f"`{command}`",
            "",
            f"Compiled by the TPU compiler for {chips} chips {kind}, nothing was run. All figures "
            "are of one chip and one step; what moves within a loop counts once. GB moved are of "
            "the chip's large memory; GB counted are the compiler's own count, which has what "
            "stays in the memory on the chip as well.",
            "",
            markdown_table(table),
            "",
            *_arithmetic(kind, chip),
            "",
        ]
    )


def _cells(row: Row, chip: Chip) -> tuple[str, ...]:
    start = (row.program, " x ".join(map(str, row.mesh)), str(row.rows))
    if isinstance(row.found, Refused):
        return (*start, row.found.reason, *[""] * (len(HEADER) - 4))
    facts, seconds = row.found, row.found.seconds(chip)
    received = sum(size for _, size in facts.collectives.values())
    collectives = ", ".join(
        f"{count:,} {kind} ({size / 1e9:.2f} GB)"
        for kind, (count, size) in facts.collectives.items()
    )
    return (
        *start,
        f"{facts.held_bytes / 1e9:.2f} of {chip.memory_bytes / 1e9:.1f}",
        f"{facts.flops / 1e12:.2f}",
        f"{facts.moved_bytes / 1e9:.1f}",
        f"{facts.counted_bytes / 1e9:.1f}",
        f"{received / 1e9:.2f}",
        *(f"{1e3 * value:.1f}" for value in (*seconds, seconds.step)),
        seconds.bound,
        f"{100 * seconds.utilisation:.0f} %",
        f"{100 * seconds.weak_scaling:.0f} %",
        f"{100 * seconds.weak_scaling_alone:.0f} %",
        collectives or "none",
    )


def _dollars(row: Row, chip: Chip, chips: int, price: float) -> str:
    if isinstance(row.found, Refused):
        return ""
    return f"{1000 * row.found.seconds(chip).step / 3600 * chips * price:.2f}"


def _arithmetic(kind: str, chip: Chip) -> list[str]:
    network = (
        f"its {chip.link_bytes_per_second / 1e9:.0f} GB/s of links one way, of which a ring along "
        f"one of {chip.torus} dimensions of the torus has {chip.ring_bytes_per_second / 1e9:.0f}"
        if chip.torus
        else f"its {chip.link_bytes_per_second / 1e9:.0f} GB/s of links one way"
    )
    return [
        f"compute = TFLOP / {chip.flops / 1e12:.0f} TFLOP/s in bfloat16; memory = GB moved / "
        f"{chip.bytes_per_second / 1e9:,.0f} GB/s; network = GB received / {network} ({kind}, data "
        "sheet: `gct_jax/chips.py`). The step is the largest of the three, a bound: every unit at "
        "its peak, all at once. Utilisation = compute / step. Weak scaling compares with one chip "
        "that has the same rows and no network: max(compute, memory) / step, and, if nothing "
        "overlaps with the network, max(compute, memory) / (max(compute, memory) + network).",
    ]


def movers(moving: Sequence[Instruction], count: int) -> str:
    """The largest instructions, and the sums by the operation they come from."""
    largest = sorted(moving, key=lambda one: one.bytes_moved * one.times, reverse=True)[:count]
    sums: collections.Counter[str] = collections.Counter()
    numbers: collections.Counter[str] = collections.Counter()
    for one in moving:
        name = one.source.split("/")[-1] or one.operation
        sums[name] += int(one.bytes_moved * one.times)
        numbers[name] += one.times
    rows = [("GB", "times", "instruction", "result", "from")]
    rows += [
        (
            f"{one.bytes_moved * one.times / 1e9:.2f}",
            str(one.times),
            one.operation,
            f"`{one.result[:60]}`",
            f"`{one.source[-LONGEST_SOURCE:]}`",
        )
        for one in largest
    ]
    total = [("GB", "instructions", "operation")]
    total += [
        (f"{size / 1e9:.1f}", str(numbers[name]), f"`{name}`")
        for name, size in sums.most_common(count)
    ]
    return f"{markdown_table(rows)}\n\n{markdown_table(total)}\n"

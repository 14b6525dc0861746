"""How long a step of a compiled program takes at least, by the data sheet of its chip.

    compute = FLOPs / peak FLOP/s       memory = bytes moved / bandwidth of the chip's memory   (1)
    network = bytes received / bandwidth of a ring of links, one way                            (2)
    step    = max(compute, memory, network)                                                     (3)
    utilisation = compute / step        weak scaling = max(compute, memory) / step              (4)

Everything is per chip. (3) is a bound: it supposes that each unit runs at its peak and that all
three overlap. Weak scaling compares with a single chip that has the same rows and needs no network;
where nothing overlaps with the network it is max(compute, memory) / (max(compute, memory) +
network).
"""

import collections
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from gct_jax.chips import Chip
from launch.plan.hlo import COLLECTIVES, Instruction, collective, instructions, received_bytes


class Seconds(NamedTuple):
    """Equations (1) to (3)."""

    compute: float
    memory: float
    network: float

    @property
    def step(self) -> float:
        """Equation (3)."""
        return max(self)

    @property
    def bound(self) -> str:
        """Which of the three it is."""
        return max(self._fields, key=lambda name: getattr(self, name))

    @property
    def utilisation(self) -> float:
        """Equation (4)."""
        return self.compute / self.step

    @property
    def weak_scaling(self) -> float:
        """Equation (4), and below it."""
        return max(self.compute, self.memory) / self.step

    @property
    def weak_scaling_alone(self) -> float:
        """The same if nothing overlaps with the network."""
        alone = max(self.compute, self.memory)
        return alone / (alone + self.network)


class Facts(NamedTuple):
    """What the compiler says of a program, on one chip.

    held_bytes: of memory, all in all. argument_bytes, temporary_bytes: parts of it. flops: of a
    step. moved_bytes: of a step, from and to the chip's large memory (`launch.plan.hlo`).
    counted_bytes: by the compiler's own count, which has what stays on the chip as well.
    collectives: kind -> how many run and the bytes that a chip receives in them. compile_seconds:
    how long the compiler took.
    """

    held_bytes: float
    argument_bytes: float
    temporary_bytes: float
    flops: float
    moved_bytes: float
    counted_bytes: float
    collectives: dict[str, tuple[int, float]]
    compile_seconds: float

    def seconds(self, chip: Chip) -> Seconds:
        """Equations (1) and (2)."""
        received = sum(size for _, size in self.collectives.values())
        return Seconds(
            self.flops / chip.flops,
            self.moved_bytes / chip.bytes_per_second,
            received / chip.ring_bytes_per_second,
        )


class Refused(NamedTuple):
    """A program that does not fit the chip, in the compiler's words."""

    reason: str


def compile_program(
    lower: Callable[[], jax.stages.Lowered],
) -> tuple[Facts, list[Instruction]] | Refused:
    """Compile a program and read what it holds and moves."""
    start = time.perf_counter()
    try:
        compiled = lower().compile()
    except Exception as error:  # the compiler's refusals have no type of their own
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        found = re.search(r"Used ([\d.]+\w) of ([\d.]+\w)", str(error))
        return Refused(f"needs {found[1]} of {found[2]}" if found else "out of memory")
    seconds = time.perf_counter() - start
    memory: Any = compiled.memory_analysis()
    cost: Any = compiled.cost_analysis()
    moving = instructions(compiled.as_text() or "")
    # What is donated is counted among arguments and outputs, but exists once.
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    facts = Facts(
        held_bytes=held - memory.alias_size_in_bytes + memory.temp_size_in_bytes,
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        flops=cost["flops"],
        # What moves within a loop counts once, as its operations do in `cost`.
        moved_bytes=sum(one.bytes_moved for one in moving),
        counted_bytes=cost["bytes accessed"],
        collectives=_collectives(moving),
        compile_seconds=round(seconds, 1),
    )
    return facts, moving


def _collectives(moving: Sequence[Instruction]) -> dict[str, tuple[int, float]]:
    counts: dict[str, int] = collections.defaultdict(int)
    sizes: dict[str, float] = collections.defaultdict(float)
    for instruction in moving:
        kind = collective(instruction.operation)
        if kind and instruction.group > 1:
            counts[kind] += instruction.times
            sizes[kind] += received_bytes(instruction)
    return {kind: (counts[kind], sizes[kind]) for kind in COLLECTIVES if counts[kind]}

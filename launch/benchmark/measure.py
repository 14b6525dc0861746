"""Timing of calls and the peak memory of the process that makes them."""

import contextlib
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

MOST_SECONDS = 30.0  # after which no further call is begun


class Measured(NamedTuple):
    """Seconds of each timed call, and of the one before them, which warms up."""

    seconds: list[float]
    first_seconds: float


def measure(
    call: Callable[[], Any], calls: int, keep: Callable[[Any], None] = lambda output: None
) -> Measured:
    """Warm up, then time `calls` calls, fewer if they are long.

    Args:
      keep: given the first two outputs. They are not held here, lest they count as memory.
    """
    start = time.perf_counter()
    output = call()
    first = time.perf_counter() - start
    keep(output)
    seconds: list[float] = []
    while not seconds or (len(seconds) < calls and sum(seconds) < MOST_SECONDS):
        del output
        start = time.perf_counter()
        output = call()
        seconds.append(time.perf_counter() - start)
        if len(seconds) == 1:
            keep(output)
    return Measured(seconds, first)


def best_seconds(call: Callable[[], Any], repeats: int) -> float:
    """Seconds of the fastest call after one to warm up."""
    return min(measure(call, repeats).seconds)


def peak_bytes() -> int:
    """Most memory that this process has held, in RAM."""
    status = Path("/proc/self/status")
    if status.exists():  # a child's `ru_maxrss` would begin at its parent's on Linux
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def forget_peak() -> None:
    """Let `peak_bytes` begin anew with what is held now, where the system can do that (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")

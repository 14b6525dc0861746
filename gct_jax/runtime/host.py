"""What this process may use of the machine, and what it gives back.

glibc keeps what a program frees in order to use it again. Loading weights and compiling leave 100
to 150 MB behind in this way, which nothing later needs.
"""

import contextlib
import ctypes
import os


def usable_cores() -> int:
    """Processor cores that this process may use."""
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 1


def give_back_freed_memory() -> None:
    """Ask glibc for it; with another C library nothing happens."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)

"""What has been freed leaves the process, and cores are those of its affinity."""

import os
import platform
from pathlib import Path

import pytest

from gct_jax.runtime.host import give_back_freed_memory, usable_cores

PIECES, BYTES = 40_000, 4096


def resident_mb():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return None


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc")
def test_freed_memory_is_given_back():
    before = resident_mb()
    pieces = [bytearray(BYTES) for _ in range(PIECES)]
    last = bytearray(BYTES)  # above the others on the heap, so that nothing shrinks by itself
    del pieces
    give_back_freed_memory()
    assert len(last) == BYTES
    assert resident_mb() - before < 0.2 * PIECES * BYTES / 2**20


def test_other_systems_go_on(monkeypatch):
    def no_such_library(name):
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", no_such_library)
    give_back_freed_memory()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="asks Linux")
def test_cores_are_those_that_the_process_may_use():
    allowed = os.sched_getaffinity(0)
    assert usable_cores() == len(allowed)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_without_affinity_all_cores_count(monkeypatch):
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    assert usable_cores() == (os.cpu_count() or 1)

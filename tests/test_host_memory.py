"""What has been freed leaves the process."""

import platform
from pathlib import Path

import pytest

from gct_jax.host_memory import give_back_freed_memory

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

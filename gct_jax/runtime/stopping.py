"""Signals that ask a process to end: Ctrl-C, SIGTERM and SIGHUP, heard once and not lost.

A signal becomes the exception `Stopped`, so that unfinished output is removed on the way out. An
exception can be swallowed where nobody expects one, as in an extension module that is being
imported, so the request is remembered too and `check` raises it again at the next safe place.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
IMPATIENT = 3  # times Ctrl-C
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))


class Stopped(KeyboardInterrupt):
    """The process was asked to end by the signal `number`."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


class _Watch:
    """What has been heard since `stop_signals` began; `deferrals` counts the blocks to finish."""

    def __init__(self) -> None:
        self.heard: int | None = None
        self.deferrals = 0

    def hear(self, number: int, frame: Any) -> None:
        self.heard = number
        if not self.deferrals:
            raise Stopped(number)


_WATCHES: list[_Watch] = []  # signals belong to the process; the innermost watch is the last


@contextlib.contextmanager
def stop_signals() -> Iterator[None]:
    """Within it the first of `SIGNALS` raises `Stopped` in the main thread.

    A signal that the process was started to ignore, as under nohup, stays ignored. Elsewhere than
    in the main thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    watch = _Watch()
    _WATCHES.append(watch)
    heeded = [n for n in SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, watch.hear) for number in heeded}
    hook = sys.unraisablehook

    def quiet(unraisable: Any) -> None:  # the request is remembered; a trace of it tells nothing
        if not isinstance(unraisable.exc_value, Stopped):
            hook(unraisable)

    sys.unraisablehook = quiet
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in previous.items():
            signal.signal(number, handler)
        _WATCHES.remove(watch)


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether a signal has asked to stop, for work that saves first.

    The signals that follow, as srun, docker and timeout send them, change nothing until the body
    has ended; only a third Ctrl-C ends it at once. Several processes must stop at the same step,
    which is the caller's affair.
    """
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        asked.append(number)
        if len(asked) == 1:
            with contextlib.suppress(OSError):  # not print, which must not be entered twice
                os.write(2, b"\nstopping after this step; saving\n")
        if asked.count(signal.SIGINT) == IMPATIENT:
            raise Stopped(number)

    previous: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        heeded = [n for n in SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
        previous = {number: signal.signal(number, ask) for number in heeded}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def check() -> None:
    """Raise `Stopped` if a signal has come, although its first exception may have been lost."""
    if _WATCHES and _WATCHES[-1].heard is not None and not _WATCHES[-1].deferrals:
        raise Stopped(_WATCHES[-1].heard)


def heard() -> int | None:
    """Number of the signal that has come, or None."""
    return _WATCHES[-1].heard if _WATCHES else None


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Finish the body before a signal that comes in it raises `Stopped`: for a few steps that
    belong together, and for imports, which can swallow an exception."""
    if not _WATCHES or threading.current_thread() is not threading.main_thread():
        yield
        return
    watch = _WATCHES[-1]
    before = watch.heard
    watch.deferrals += 1
    try:
        yield
    finally:
        watch.deferrals -= 1
        if watch.heard not in (None, before) and not watch.deferrals:
            raise Stopped(watch.heard or 0)

"""Standard streams that never end a run: what cannot be said is spelled otherwise or left out."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class Tolerant:
    """A text stream that spells what its encoding lacks as escapes and goes quiet when it breaks.

    Everything but `write` and `flush` is the stream's own.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._broken = False

    def write(self, text: str) -> int:
        """Write `text`, and show it at once if it ends a line; returns its length."""
        if not self._broken:
            try:
                self._stream.write(spelled(text, getattr(self._stream, "encoding", None)))
                if text.endswith("\n"):
                    self._stream.flush()
            except (OSError, ValueError):  # a closed pipe, a full disk; a closed file
                self._broken = True
        return len(text)

    def flush(self) -> None:
        """Show what was written."""
        if not self._broken:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._broken = True

    def silence(self) -> None:
        """Point a broken stream's descriptor at nothing, so that the interpreter's own last flush
        cannot fail."""
        self.flush()
        if self._broken:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, self._stream.fileno())
                os.close(nothing)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def spelled(text: str, encoding: str | None) -> str:
    """`text` with what `encoding` (UTF-8 if None) cannot hold written as escapes."""
    encoding = encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


@contextlib.contextmanager
def tolerant_streams() -> Iterator[None]:
    """Within it stdout and stderr are `Tolerant`, and exist even if the process has none.

    Closed descriptors 0 to 2 are opened first: otherwise the next file to be opened gets the number
    of stderr, and what a library complains about lands in the middle of a volume.
    """
    _open_standard_descriptors()
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nothing:
        tolerant = [Tolerant(stream if stream is not None else nothing) for stream in before]
        sys.stdout, sys.stderr = tolerant  # type: ignore[assignment]
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before
            for stream in tolerant:
                stream.silence()


def _open_standard_descriptors() -> None:
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free

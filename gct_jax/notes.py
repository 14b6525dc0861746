"""Sentences on what was not done or read as it stands, where that is no error."""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

Note = Callable[[str], None]
PACKAGE = str(Path(__file__).parent)


def warn(message: str) -> None:
    """A note as a Python warning at the caller of the package."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def tell(message: str) -> None:
    """A note as a command tells it, on stderr."""
    print(f"gct: note: {message}", file=sys.stderr)

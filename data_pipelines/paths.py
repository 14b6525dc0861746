"""Which files lie under a folder, and which path a table may name."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from gct_jax.errors import InputError


def named_path(root: Path, text: str) -> Path:
    """The file below `root` that a table names.

    Raises:
      InputError: an absolute path, one that climbs out by "..", or no file.
    """
    relative = text.strip().replace("\\", "/")
    if not relative:
        raise InputError("an empty path")
    if PurePosixPath(relative).is_absolute() or PureWindowsPath(relative).drive:
        raise InputError("an absolute path; name it below the folder of --root")
    if ".." in PurePosixPath(relative).parts:
        raise InputError("a path with '..'; name it below the folder of --root")
    path = root / relative
    try:
        path.stat()
    except OSError as error:
        raise InputError(f"{error.strerror or error}") from None
    return path


def leaves(root: Path, path: Path) -> bool:
    """Whether a link leads `path` out of `root`."""
    return not path.resolve().is_relative_to(root.resolve())


def walk(root: Path) -> Iterator[tuple[Path, list[Path], str | None]]:
    """(folder, its files, None) for every folder under `root`, sorted; links are followed. Of a
    folder that cannot be read, or that a link leads back to, (folder, [], the reason)."""
    yield from _walk(root, {_identity(root)})


def _walk(
    folder: Path, above: set[tuple[int, int]]
) -> Iterator[tuple[Path, list[Path], str | None]]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield folder, [], f"cannot be read ({error.strerror or error})"
        return
    folders: list[Path] = []
    files: list[Path] = []
    for entry in entries:
        try:
            (folders if entry.is_dir() else files).append(Path(entry.path))
        except OSError:  # a link to itself
            files.append(Path(entry.path))
    yield folder, files, None
    for inner in folders:
        identity = _identity(inner)
        if identity in above:
            yield inner, [], "a link that leads back to a folder above it"
        else:
            yield from _walk(inner, above | {identity})


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino

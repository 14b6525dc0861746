"""Files appear whole or not at all.

Unfinished ones have random names, short enough wherever the final name is legal: two processes can
write beside each other even if both have the same number, as in containers that share a disk.
"""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gct_jax.errors import InputError
from gct_jax.runtime import stopping

LONGEST_SUFFIX = 16


def require_file(path: str | Path) -> None:
    """Raise InputError unless `path` is a file."""
    # Of `os`: `Path` raises OSError for a name that is too long.
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder, not a file")
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file")


def unfinished_name(path: Path) -> Path:
    """A new hidden name beside `path` with the same suffix."""
    suffix = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
    suffix = suffix if len(os.fsencode(suffix)) <= LONGEST_SUFFIX else ""
    return path.with_name(f".gct-{secrets.token_hex(6)}{suffix}")


@contextmanager
def replace_when_done(path: str | Path) -> Iterator[Path]:
    """Give a temporary name beside `path` to write to; rename it to `path` on success.

    The temporary name ends in the suffix of `path`, so that writers which choose a format by suffix
    choose the right one. Missing parent folders are made. If the body raises, `path` stays as it
    was and the temporary file and any parent made for it are removed.

    Raises:
      InputError: the folder cannot be written to, or the disk is full.
    """
    path = Path(path)
    temporary = unfinished_name(path)
    with _naming(path), _new_parents(path):
        try:
            yield temporary
            stopping.check()
            os.replace(temporary, path)
        finally:
            with stopping.deferred():
                temporary.unlink(missing_ok=True)


@contextmanager
def replace_files_when_done(folder: str | Path, names: Iterable[str] = ()) -> Iterator[Path]:
    """Give an empty temporary folder; move its files into `folder` on success, all or none.

    The temporary folder lies inside `folder` if that exists, because nothing else may be writable,
    otherwise beside it. Files of `folder` under other names stay. If the body raises or one file
    cannot be replaced, `folder` stays as it was, or absent, and the temporary folder and any parent
    made for it are removed.

    Args:
      folder: where the files belong.
      names: files that the body is going to write; one that could not be replaced is found out now.

    Raises:
      InputError: the folder cannot be written to, or the disk is full.
    """
    folder = Path(folder).resolve()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"cannot write into {folder}: it is a file, not a folder")
    for name in names:
        _require_replaceable(folder / name)
    temporary = unfinished_name(folder / "_" if folder.is_dir() else folder)
    temporary = temporary.with_name(f"{temporary.stem}.unfinished")
    with _naming(folder), _new_parents(folder):
        try:
            temporary.mkdir()
            yield temporary
            stopping.check()
            with stopping.deferred():
                _move_in(temporary, folder)
        finally:
            with stopping.deferred():
                shutil.rmtree(temporary, ignore_errors=True)


def _move_in(temporary: Path, folder: Path) -> None:
    """Move the files of `temporary` to `folder`; if one fails, put everything back."""
    if not folder.is_dir():
        os.replace(temporary, folder)
        return
    files = sorted(temporary.iterdir())
    for file in files:
        _require_replaceable(folder / file.name)
    earlier = temporary / "earlier"  # within the same file system, hence a rename
    earlier.mkdir()
    moved: list[str] = []
    try:
        for file in files:
            target = folder / file.name
            if target.exists() or target.is_symlink():
                os.replace(target, earlier / file.name)
            moved.append(file.name)
            os.replace(file, target)
    except BaseException:
        for name in moved:
            if (earlier / name).exists() or (earlier / name).is_symlink():
                os.replace(earlier / name, folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
        raise


def _require_replaceable(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        raise InputError(f"cannot write {path}: it is a folder; move it away")


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses into InputError about `path`."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def _new_parents(path: Path) -> Iterator[None]:
    """Make the missing parents of `path`; remove those that are still empty at the end."""
    new = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with stopping.deferred():
            for parent in new:
                with contextlib.suppress(OSError):  # not empty, or never made
                    parent.rmdir()

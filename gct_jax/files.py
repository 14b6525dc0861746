"""Files appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gct_jax.errors import InputError


def require_file(path: str | Path) -> None:
    """Raise InputError unless `path` is a file."""
    # Of `os`: `Path` raises OSError for a name that is too long.
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder, not a file")
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file")


@contextmanager
def replace_when_done(path: str | Path) -> Iterator[Path]:
    """Give a temporary name beside `path` to write to; rename it to `path` on success.

    The temporary name ends in the name of `path`, so that writers which choose a format by suffix
    choose the right one. Missing parent folders are made. If the body raises, `path` stays as it
    was and the temporary file is removed.

    Raises:
      InputError: the folder cannot be written to, or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary.parent.is_dir():
            temporary.unlink(missing_ok=True)


@contextmanager
def replace_files_when_done(folder: str | Path) -> Iterator[Path]:
    """Give an empty temporary folder; move its files into `folder` on success.

    The temporary folder lies inside `folder` if that exists, because nothing else may be writable,
    otherwise beside it. Files of `folder` under other names stay. If the body raises, `folder`
    stays as it was, or absent, and the temporary folder and any parent made for it are removed.

    Raises:
      InputError: the folder cannot be written to, or the disk is full.
    """
    folder = Path(folder).resolve()
    existed = folder.is_dir()
    beside = folder if existed else folder.parent
    temporary = beside / f".{os.getpid()}.{folder.name}.unfinished"
    new_parents = [parent for parent in folder.parents if not parent.exists()]
    try:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"cannot write into {folder}: it is a file, not a folder")
        temporary.mkdir(parents=True)
        yield temporary
        if existed:
            for file in temporary.iterdir():
                os.replace(file, folder / file.name)
        else:
            os.replace(temporary, folder)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in new_parents:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()

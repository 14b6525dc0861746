"""Folders on disks and in object stores: the one file that knows etils.

A run's own files are small. They are written on a local disk, where they are replaced by rename,
and put into the store whenever they have changed; arrays go there directly, by Orbax.
gs:// was tried against a stand-in for Google's service, s3:// not at all.
"""

import atexit
import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gct_jax.errors import ConfigError, GctError, in_a_line

SCHEMES = ("gs://", "s3://")
# What a reader of a run does not need, and what is too large to be fetched with the rest.
APART = ("checkpoints", "tensorboard", "samples", "profile")
PUBLISH_SECONDS = 30.0  # between two times that changed files are put into the store


def folder(address: str) -> Any:
    """The folder at an address: a `Path`, or of an object store what etils has like it.

    Raises:
      ConfigError: a scheme that is not known.
    """
    if "://" not in address:
        return Path(address)
    if not address.startswith(SCHEMES):
        raise ConfigError(f"{address}: folders are on a disk, or at {' or '.join(SCHEMES)}")
    from etils import epath

    return epath.Path(address)


def is_remote(place: Any) -> bool:
    """Whether a folder lies in an object store."""
    return str(place).startswith(SCHEMES)


@contextlib.contextmanager
def _told(place: Any) -> Iterator[None]:
    """Whatever a store's library raises becomes ConfigError about `place`."""
    try:
        yield
    except (GctError, KeyboardInterrupt):
        raise
    except ImportError:
        raise ConfigError(f"{place} needs the extra cloud: pip install 'gct_jax[cloud]'") from None
    except Exception as error:  # libraries of stores raise what they like
        raise ConfigError(
            f"cannot use {place} ({in_a_line(error)}); look at its name, the network and your login"
        ) from error


@contextlib.contextmanager
def fetched(place: Any) -> Iterator[Path]:
    """A local folder with the files of `place` but for `APART`: of a local folder that itself. What
    is refused in the body names `place`.

    Raises:
      ConfigError: the store cannot be read.
    """
    if not is_remote(place):
        yield Path(place)
        return
    with tempfile.TemporaryDirectory(prefix="gct_jax_") as local:
        _fetch(place, Path(local))
        try:
            yield Path(local)
        except GctError as error:
            error.args = (str(error).replace(local, str(place)),)
            raise


def _fetch(place: Any, local: Path) -> None:
    with _told(place):
        if not place.exists():
            return
        for item in place.iterdir():
            if item.name in APART or item.name.startswith("."):
                continue
            if not item.is_dir():
                (local / item.name).write_bytes(item.read_bytes())


class WorkFolder:
    """A run's folder: `local`, where its own files are written, and `place`, where it lies, the
    same but for an object store."""

    def __init__(self, address: str, writes: bool):
        self.place = folder(address)
        self._remote = is_remote(self.place)
        self._writes = writes and self._remote
        self._is_new = writes and not self._remote and not self.place.exists()
        self._sent: dict[str, tuple[int, int]] = {}
        self._last = -PUBLISH_SECONDS
        if not self._remote:
            self.local = Path(address)
            return
        self.local = Path(tempfile.mkdtemp(prefix="gct_jax_"))
        atexit.register(shutil.rmtree, self.local, ignore_errors=True)
        _fetch(self.place, self.local)
        self._sent = self._state()

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """What is refused in the body names the place, not the local copy, and leaves no empty
        folder that was not there before."""
        try:
            yield
        except GctError as error:
            error.args = (str(error).replace(str(self.local), str(self.place)),)
            if self._is_new:
                with contextlib.suppress(OSError):
                    self.local.rmdir()  # only if it is empty
            raise

    def publish(self, now: bool = False) -> None:
        """Put the files that have changed into the store, at most every `PUBLISH_SECONDS` unless
        `now`; a no-op for a local folder and for processes that do not write.

        Raises:
          ConfigError: the store cannot be written to.
        """
        if not self._writes or (not now and time.monotonic() - self._last < PUBLISH_SECONDS):
            return
        with _told(self.place):
            for name, state in self._state().items():
                if self._sent.get(name) != state:
                    target = self.place / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes((self.local / name).read_bytes())
                    self._sent[name] = state
        self._last = time.monotonic()

    def _state(self) -> dict[str, tuple[int, int]]:
        """Time and size of each file."""
        found = {}
        for path in sorted(self.local.rglob("*")):
            if path.is_file() and not path.name.startswith((".gct-", "run.lock")):
                stat = path.stat()
                name = path.relative_to(self.local).as_posix()
                found[name] = (stat.st_mtime_ns, stat.st_size)
        return found

"""One process at a time in a folder, on one host or several that share a disk."""

import contextlib
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import SoftFileLease, Timeout

from gct_jax.errors import GctError

LEASE_SECONDS = 30.0
FILE_NAME = "run.lock"


@contextlib.contextmanager
def locked(
    folder: Path, advice: str = "wait for it, stop it, or choose another folder"
) -> Iterator[SoftFileLease]:
    """Hold `folder/run.lock` during the body.

    The lock is refreshed while its holder lives. One that a kill left behind is taken over at once
    on the same host, and on another when it has not been refreshed for half a minute.

    advice: what to do about another holder, for the message.

    Raises:
      GctError: a live process holds it; the message names host, process and start.
    """
    if folder.is_file():
        raise GctError(f"{folder} is a file; give a folder")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE_NAME
    holder_path = folder / f"{FILE_NAME}.holder"
    lease = SoftFileLease(path, lease_duration=LEASE_SECONDS, thread_local=False)
    found = _holder(holder_path)
    # A holder on this host is alive or not; only of another host one has to see it refresh.
    elsewhere = found.get("host") not in (None, platform.node())
    patience = 1.5 * LEASE_SECONDS if elsewhere else 0.0
    if elsewhere and path.exists():
        print(
            f"note: {folder} was last used by process {found.get('process')} on "
            f"{found['host']}; waiting {patience:.0f} s to see whether it lives",
            file=sys.stderr,
        )
    try:
        lease.acquire(timeout=patience, poll_interval=0.5)
    except Timeout:
        found = _holder(holder_path)
        who = f"process {found.get('process', '?')} on {found.get('host', 'an unknown host')}"
        raise GctError(
            f"{folder} is in use by {who}, started {found.get('start', 'at an unknown time')}; "
            f"{advice}"
        ) from None
    try:
        start = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        mine = {"host": platform.node(), "process": os.getpid(), "start": start}
        holder_path.write_text(json.dumps(mine) + "\n", encoding="utf-8")
        yield lease
    finally:
        holder_path.unlink(missing_ok=True)
        lease.release()


@contextlib.contextmanager
def leased(folder: Any) -> Iterator[None]:
    """The same for a folder in an object store, which knows no locks: its holder writes the time
    into `folder/run.lock.holder` again and again. Two that start within the same second are not
    told apart.

    Raises:
      GctError: another holder has written within the last `LEASE_SECONDS`.
    """
    path = folder / f"{FILE_NAME}.holder"
    found = _holder(path)
    age = time.time() - float(found.get("time", 0))
    if age < LEASE_SECONDS:
        raise GctError(
            f"{folder} is in use by process {found.get('process', '?')} on "
            f"{found.get('host', 'an unknown host')}, seen {max(age, 0):.0f} s ago; wait half a "
            "minute, stop it, or choose another folder"
        )
    ended = threading.Event()

    def write() -> None:
        mine = {"host": platform.node(), "process": os.getpid(), "time": time.time()}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(mine) + "\n")

    def refresh() -> None:
        while not ended.wait(LEASE_SECONDS / 3):
            with contextlib.suppress(Exception):  # the next one may succeed
                write()

    write()
    thread = threading.Thread(target=refresh, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        path.unlink(missing_ok=True)


def _holder(path: Any) -> dict:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}

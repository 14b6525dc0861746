"""Several processes that compute together, usually one for each host: joining, and agreeing.

What one process alone refuses, all refuse: a process that went on would wait for it for ever.
"""

import contextlib
import dataclasses
import json
import os
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from gct_jax.errors import ConfigError, GctError

HEARTBEAT_SECONDS = 20  # of silence, after which a process counts as lost
COMMON_FOLDER_SECONDS = 10.0  # a network disk may show a new file late
JOIN_SECONDS = 300  # that JAX waits for the others at the start
TELL_SECONDS = 10.0
EXAMPLE = "10.0.0.1:8476,4,0 is the first of four processes"

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where process 0 of a run is, how many processes there are, and which this one is."""

    host: str
    port: int
    count: int
    index: int

    @staticmethod
    def parsed(text: str) -> "Place":
        """From "HOST:PORT,COUNT,INDEX".

        Raises:
          ConfigError: it is of another form, or impossible.
        """
        found = re.fullmatch(r"([^\s,]+):(\d+),(\d+),(\d+)", text)
        said = f"--multi-host {text}"
        if not found:
            raise ConfigError(f"{said} is not of the form HOST:PORT,COUNT,INDEX: {EXAMPLE}")
        place = Place(found[1], int(found[2]), int(found[3]), int(found[4]))
        if not 0 < place.port < 2**16:
            raise ConfigError(f"{said}: a port is a number from 1 to 65535, not {place.port}")
        if not place.index < place.count:
            last = max(place.count, 1) - 1
            raise ConfigError(f"{said}: process {place.index} of {place.count}; from 0 to {last}")
        return place

    def require_reachable(self) -> None:
        """Raise ConfigError if the host has no address, or if this is process 0 and cannot listen
        there."""
        said = f"--multi-host {self.host}:{self.port}"
        try:
            address = socket.getaddrinfo(self.host.strip("[]"), self.port)[0]
        except OSError as error:
            raise ConfigError(f"{said}: host {self.host} is not known ({error.strerror})") from None
        if self.index:
            return
        try:
            with socket.socket(address[0]) as tried:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tried.bind(("", self.port))
        except OSError as error:
            raise ConfigError(
                f"{said}: process 0 cannot listen on port {self.port} ({error.strerror}); "
                "give another one, on all hosts"
            ) from None


def join(where: str) -> None:
    """Join the other processes of the run; `where` is "HOST:PORT,COUNT,INDEX", or "" on a cluster
    that JAX knows.

    Raises:
      ConfigError: the others cannot be found, or not from this text.
    """
    # Its handler of SIGTERM would take the place of ours, and Ctrl-C it does not hear.
    jax.config.update("jax_enable_preemption_service", False)
    if not jax.config.values["jax_cpu_collectives_implementation"]:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    place = Place.parsed(where) if where else None
    options: dict[str, Any] = {"heartbeat_timeout_seconds": HEARTBEAT_SECONDS}
    if place:
        place.require_reachable()
        address = f"{place.host}:{place.port}"
        options |= {"coordinator_address": address, "num_processes": place.count}
        options |= {"process_id": place.index}
    with _told_waiting(place):
        try:
            jax.distributed.initialize(**options)
        except (ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            if place is None and "should be defined" in reason:
                reason = "no TPU slice, SLURM, Open MPI or GKE job is known here"
            raise ConfigError(
                f"cannot join the other processes ({reason}); elsewhere give --multi-host "
                f"HOST:PORT,COUNT,INDEX: {EXAMPLE}"
            ) from None


@contextlib.contextmanager
def _told_waiting(place: Place | None) -> Iterator[None]:
    """Tell on stderr that others are waited for, if that takes long."""
    whom = f"{place.count} processes at {place.host}:{place.port}" if place else "the cluster's"

    def tell() -> None:
        print(
            f"waiting for all of {whom} to start, up to {JOIN_SECONDS // 60} minutes",
            file=sys.stderr,
            flush=True,
        )

    timer = threading.Timer(TELL_SECONDS, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def together(run: Callable[[], T]) -> T:
    """What `run` returns, if it refuses on no process.

    Raises:
      GctError: what this or another process refuses.
    """
    if jax.process_count() == 1:
        return run()
    error: GctError | None = None
    try:
        result = run()
    except GctError as found:
        error = found
    told = _gathered("" if error is None else str(error))
    if error is not None:
        raise error
    for process, message in enumerate(told):
        if message:
            raise ConfigError(f"process {process} refuses: {message}")
    return result


def on_any_process(answer: bool) -> bool:
    """Whether the answer of any process is True; none goes on before all have come here."""
    return any(_gathered("yes" if answer else ""))


def require_same(values: Mapping[str, Any]) -> None:
    """Raise ConfigError, naming one, if a value is not the same on all processes.

    values: by name, as JSON holds them.
    """
    own = {name: json.dumps(value) for name, value in values.items()}
    first, *others = (json.loads(text) for text in _gathered(json.dumps(own)))
    for process, told in enumerate(others, 1):
        for name in {**first, **told}:
            if first.get(name) != told.get(name):
                raise ConfigError(
                    f"process {process} was started with {name} = {told.get(name)}, process 0 with "
                    f"{first.get(name)}; give all processes the same options"
                )


def require_common_folder(folder: Any) -> None:
    """Raise ConfigError unless all processes see the same folder."""
    if jax.process_count() == 1:
        return
    first = jax.process_index() == 0
    name = f".gct-common-{_gathered(secrets.token_hex(6) if first else '')[0]}"
    path = folder / name
    try:
        if first:
            together(lambda: _write(path))
        else:
            together(lambda: None)
        seen = "" if _appears(path) else f"{os.uname().nodename}"
        missing = {i: host for i, host in enumerate(_gathered(seen)) if host}
    finally:
        if first:
            path.unlink(missing_ok=True)
    if missing:
        others = ", ".join(f"{process} (host {host})" for process, host in missing.items())
        raise ConfigError(
            f"{folder} is not the same folder on all hosts: process {others} does not see what "
            "process 0 writes there; give a folder on a shared disk or in an object store"
        )


def _write(path: Any) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    except OSError as error:
        raise ConfigError(f"cannot write into {path.parent}: {error.strerror or error}") from None


def _appears(path: Any) -> bool:
    limit = time.monotonic() + COMMON_FOLDER_SECONDS
    while time.monotonic() < limit:
        try:
            if any(found.name == path.name for found in path.parent.iterdir()):
                return True
        except OSError:
            pass
        time.sleep(0.2)
    return False


def _gathered(text: str) -> list[str]:
    """The texts of all processes, in order."""
    if jax.process_count() == 1:
        return [text]
    from jax.experimental.multihost_utils import process_allgather

    content = text.encode()
    sizes = np.asarray(process_allgather(np.int32(len(content)))).tolist()
    padded = np.frombuffer(content.ljust(max(*sizes, 1), b"\0"), np.uint8)
    rows = np.asarray(process_allgather(padded))
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]

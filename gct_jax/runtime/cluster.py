"""Several processes that compute together, usually one for each host: joining, and agreeing.

What one process alone refuses, all refuse: a process that went on would wait for it for ever.
"""

import os
import secrets
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

from gct_jax.errors import ConfigError, GctError

HEARTBEAT_SECONDS = 20  # of silence, after which a process counts as lost
COMMON_FOLDER_SECONDS = 10.0  # a network disk may show a new file late
MESSAGE_BYTES = 1000

T = TypeVar("T")


def join(where: str) -> None:
    """Join the other processes of the run; `where` is "HOST:PORT,COUNT,INDEX", or "" on a cluster
    that JAX knows.

    Raises:
      ConfigError: the others cannot be found, or not from this text.
    """
    form = "--multi-host HOST:PORT,COUNT,INDEX"
    # Its handler of SIGTERM would take the place of ours, and Ctrl-C it does not hear.
    jax.config.update("jax_enable_preemption_service", False)
    if not jax.config.values["jax_cpu_collectives_implementation"]:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    options: dict[str, Any] = {"heartbeat_timeout_seconds": HEARTBEAT_SECONDS}
    try:
        if where:
            address, count, index = where.split(",")
            jax.distributed.initialize(address, int(count), int(index), **options)
        else:
            jax.distributed.initialize(**options)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"cannot join the other processes ({reason}); give {form}") from None


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

    content = text.encode()[:MESSAGE_BYTES].ljust(MESSAGE_BYTES, b"\0")
    rows = np.asarray(process_allgather(np.frombuffer(content, np.uint8)))
    return [bytes(row).rstrip(b"\0").decode("utf-8", "replace") for row in rows]

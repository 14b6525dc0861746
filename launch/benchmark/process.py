"""Workers as child processes that may not take more memory or time than they are given."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from launch.benchmark.worker import OUT_OF_MEMORY, Job

POLL_SECONDS = 0.02
KILLED = -9


class Outcome(NamedTuple):
    """How a child ended.

    status: "ok", "out of memory", "out of time" or "failed".
    seconds: it lived. peak_bytes: the most memory it was seen to hold.
    detail: the last line it wrote to its error stream.
    """

    status: str
    seconds: float
    peak_bytes: int
    detail: str


class Limits(NamedTuple):
    """Most memory and time of one child."""

    memory_bytes: int
    seconds: float


def run_guarded(command: list[str], environment: dict[str, str], limits: Limits) -> Outcome:
    """Run a command and kill it if it goes beyond a limit. Its standard output is dropped."""
    start = time.perf_counter()
    status, peak = "", 0
    with (
        tempfile.TemporaryFile("w+", errors="replace") as messages,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=messages
        ) as child,
    ):
        while child.poll() is None:
            peak = max(peak, _resident_bytes(child.pid))
            if peak > limits.memory_bytes:
                status = "out of memory"
            elif time.perf_counter() - start > limits.seconds:
                status = "out of time"
            if status:
                child.kill()
                break
            time.sleep(POLL_SECONDS)
        child.wait()
        messages.seek(0)
        lines = messages.read().strip().splitlines()
    if not status:
        status = {0: "ok", KILLED: "out of memory", OUT_OF_MEMORY: "out of memory"}.get(
            child.returncode, "failed"
        )
    return Outcome(status, time.perf_counter() - start, peak, lines[-1] if lines else "")


def machine_memory() -> Any:
    """Its `total` and `available` bytes."""
    import psutil

    return psutil.virtual_memory()


def _resident_bytes(pid: int) -> int:
    import psutil

    try:
        size: int = psutil.Process(pid).memory_info().rss
    except psutil.Error:  # it has just ended
        return 0
    return size


def run_job(job: Job, path: Path, limits: Limits) -> dict[str, Any]:
    """Run a worker.

    Args:
      path: where the job is written; its outputs lie beside it.

    Returns:
      {"status", "peak_bytes", "detail"} of `Outcome`, and the worker's answer where it gave one.
    """
    path.write_text(json.dumps(dataclasses.asdict(job) | {"started": time.time()}))
    environment = dict(os.environ)
    environment["JAX_COMPILATION_CACHE_DIR"] = str(Path(job.folder) / "compiled")
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    if job.side == "prepare":  # an accelerator's memory is not to be taken for this
        environment["JAX_PLATFORMS"] = "cpu"
    command = [sys.executable, "-m", "launch.benchmark.worker", str(path)]
    outcome = run_guarded(command, environment, limits)
    result = path.with_suffix(".result.json")
    answer = json.loads(result.read_text()) if outcome.status == "ok" else {}
    return {
        "status": outcome.status,
        "peak_bytes": outcome.peak_bytes,
        "detail": outcome.detail,
        **answer,
    }

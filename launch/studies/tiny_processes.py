"""The stages of `configs/tiny.py` in several processes of this machine, as on several hosts."""

import os
import socket
from pathlib import Path

STAGES: dict[str, tuple[str, ...]] = {  # and what each goes on from
    "ctvit": (),
    "t5": (),
    "maskgit": ("ctvit", "t5"),
    "superres": ("ctvit", "maskgit"),
}


def local_address() -> str:
    """HOST:PORT of a port of this machine that is free now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def simulated_devices(count: int) -> dict[str, str]:
    """The environment of a process with `count` simulated devices."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # tiny arrays gain nothing from more
    }


def stage_arguments(folder: Path, stage: str, settings: tuple[str, ...]) -> list[str]:
    """Arguments of `launch.train` and `launch.prepare` for a stage whose predecessors lie in
    `folder`."""
    arguments = ["--config", f"configs/tiny.py:{stage}", *settings]
    for name in STAGES[stage]:
        arguments += ["--from", str(folder / name)]
    return arguments

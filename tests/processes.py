"""Several processes of `launch.train` on this machine, as they would be on several hosts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from launch.studies.tiny_processes import local_address, simulated_devices

ROOT = Path(__file__).parents[1]


class Group:
    """`count` processes with `devices` simulated devices each, of one command or one for each."""

    def __init__(self, arguments=(), count=2, devices=2, workdirs=None, commands=None):
        commands = commands or [arguments] * count
        address = local_address()
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
        environment = simulated_devices(devices) | {"PYTHONPATH": path}
        self.processes = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "launch.train", *commands[i]),
                    *(["--workdir", str(workdirs[i])] if workdirs else []),
                    *("--multi-host", f"{address},{count},{i}"),
                ],
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
            for i in range(count)
        ]

    def wait(self, seconds=240):
        """Exit codes and what each said on stderr."""
        said = [process.communicate(timeout=seconds)[1] for process in self.processes]
        return [process.returncode for process in self.processes], said

    def signal(self, index, number=signal.SIGTERM):
        self.processes[index].send_signal(number)

    def kill_child(self, index):
        """kill -9 of the process that computes."""
        parent = self.processes[index].pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        for child in children:
            os.kill(int(child), signal.SIGKILL)


def wait_for_step(workdir, step, seconds=200):
    """Until the run has logged it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if any(entry["step"] >= step for entry in metrics(workdir)):
            return
        time.sleep(0.05)
    raise TimeoutError(f"{workdir} did not reach step {step}")


def metrics(workdir):
    """What was logged so far."""
    path = Path(workdir) / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def saved_sums(workdir):
    """step -> checksum of every array of its checkpoint."""
    found = {}
    for path in (Path(workdir) / "checkpoints").iterdir():
        if path.name.isdigit():
            content = json.loads((path / "progress" / "metadata").read_text())
            found[int(path.name)] = content["arrays"]
    return found

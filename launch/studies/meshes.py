"""The losses of every stage on every mesh, over one, two and four processes.

    python -m launch.studies.meshes --out benchmarks/meshes.md

Trains `configs/tiny.py` for a few steps on one device and on eight simulated ones that belong to
one, two or four processes of this machine, and writes the largest relative difference of a logged
loss from one device's: of training, and of the evaluation of all held-out cases at the end. It
needs `pip install -e '.[train]'`, and an hour on two cores; with `--workdir` it can be stopped, and
goes on where it was.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gct_jax.errors import GctError
from gct_jax.runtime.exit_codes import exit_code
from gct_jax.runtime.files import replace_when_done
from launch.markdown import markdown_table
from launch.studies.tiny_processes import (
    STAGES,
    local_address,
    simulated_devices,
    stage_arguments,
)

DEVICES = 8
PROCESSES = (1, 2, 4)
MESHES = (
    (8, 1, 1),
    (1, 8, 1),
    (1, 1, 8),
    (2, 2, 2),
    (4, 1, 2),
    (2, 1, 4),
)
# Eight rows of each batch, ten cases held out: the last batch of an evaluation is short. Small
# updates, lest rounding chooses another code for a token that lies between two.
SETTINGS = (
    "loop.steps=4",
    "loop.log_every=1",
    "loop.eval_every=4",
    "loop.sample_every=4",
    "data.cases=40",
    "data.held_out=10",
    "optimizer.learning_rate=1e-4",
)
BOUND = 1e-4


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 1 if a loss is further from one device's than `BOUND`."""
    parser = argparse.ArgumentParser(prog="launch.studies.meshes", description=__doc__)
    parser.add_argument("--out", required=True, type=Path, help="the table, as Markdown")
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--processes", nargs="+", type=int, choices=PROCESSES, default=PROCESSES)
    parser.add_argument("--workdir", type=Path, help="keeps the runs, which are not made again")
    options = parser.parse_args(arguments)
    worst: list[float] = []

    def command() -> None:
        with tempfile.TemporaryDirectory() as folder:
            workdir = options.workdir or Path(folder)
            found = study(workdir, options.stage, options.processes)
        text = report(found, options.processes)
        with replace_when_done(options.out) as path:
            path.write_text(text, encoding="utf-8")
        print(text)
        worst.append(max(found.values()))

    return exit_code("launch.studies.meshes", command) or int(worst[0] > BOUND)


Key = tuple[str, int, tuple[int, int, int]]  # stage, processes, mesh


def study(folder: Path, stages: Iterable[str], processes: Iterable[int]) -> dict[Key, float]:
    """The largest relative difference from one device of each stage, number of processes, mesh."""
    needed = [name for name in STAGES if any(name in (s, *STAGES[s]) for s in stages)]
    for stage in needed:  # one device, in this order: each goes on from the earlier ones
        if not finished(folder / stage):
            subprocess.run(prepare_command(folder, stage), check=True, capture_output=True)
            run_jobs([job(folder, stage, (1, 1, 1), 1)], 1)
    found: dict[Key, float] = {}
    groups = [(stage, count) for stage in stages for count in processes]
    for stage, count in tqdm(groups, unit="group of processes"):
        missing = [mesh for mesh in MESHES if not finished(workdir(folder, stage, mesh, count))]
        run_jobs([job(folder, stage, mesh, count) for mesh in missing], count)
        alone = losses(folder / stage)
        for mesh in MESHES:
            there = workdir(folder, stage, mesh, count)
            same_images = images(there) == images(folder / stage)
            found[stage, count, mesh] = (
                difference(losses(there), alone) if same_images else float("inf")
            )
    return found


def finished(folder: Path) -> bool:
    """Whether a run was made to its end."""
    status = folder / "status.json"
    return status.exists() and json.loads(status.read_text())["state"] == "finished"


def workdir(folder: Path, stage: str, mesh: tuple[int, ...], processes: int) -> Path:
    """Where a run lies; that of one device under the stage's name."""
    if mesh == (1, 1, 1):
        return folder / stage
    return folder / f"{stage}-{processes}-{'x'.join(map(str, mesh))}"


def job(folder: Path, stage: str, mesh: tuple[int, ...], processes: int) -> list[str]:
    """Arguments of `launch.train`."""
    where = ["--workdir", str(workdir(folder, stage, mesh, processes))]
    return [*_config(folder, stage), *where, f"loop.mesh={list(mesh)}"]


def _config(folder: Path, stage: str) -> list[str]:
    prepared = [] if stage == "t5" else [f"data.folder={folder / 'data'}"]
    return [*stage_arguments(folder, stage, SETTINGS), *prepared]


def prepare_command(folder: Path, stage: str) -> list[str]:
    """Prepares what several processes read."""
    if stage == "t5":
        return [sys.executable, "-c", ""]
    arguments = [*stage_arguments(folder, stage, SETTINGS), "--out", str(folder / "data")]
    return [sys.executable, "-m", "launch.prepare", *arguments]


def run_jobs(jobs: list[list[str]], processes: int) -> None:
    """Run `launch.train` for each of `jobs` in turn, in a group of processes that stays.

    Raises:
      GctError: a process failed; the message is its last line.
    """
    if not jobs:
        return
    address, environment = local_address(), simulated_devices(DEVICES // processes)
    group = [
        subprocess.Popen(
            [sys.executable, "-m", "launch.studies.mesh_worker", address, str(processes), str(i)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]
    for process in group:
        assert process.stdin is not None
        process.stdin.write(json.dumps(jobs))
        process.stdin.close()
    for process in group:
        assert process.stderr is not None
        said = process.stderr.read()
        if process.wait():
            for other in group:
                other.kill()
            raise GctError(f"a process of {processes} failed: {said.strip()[-2000:]}")


def losses(folder: Path) -> dict[tuple[str, int], float]:
    """Every loss that a run logged, by name and step."""
    found: dict[tuple[str, int], float] = {}
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        entry: dict[str, Any] = json.loads(line)
        for name in ("loss", "eval/loss"):
            if name in entry:
                found[name, entry["step"]] = entry[name]
    return found


def images(folder: Path) -> set[str]:
    """Names of the sample images that a run drew."""
    return {path.name for path in folder.glob("samples/*.png")}


def difference(there: dict[Any, float], alone: dict[Any, float]) -> float:
    """The largest relative difference; infinite if they are not of the same steps."""
    if set(there) != set(alone):
        return float("inf")
    return max(abs(there[key] - alone[key]) / abs(alone[key]) for key in alone)


def report(found: dict[Key, float], processes: Sequence[int]) -> str:
    """The page."""
    counts = " ".join(map(str, processes))
    header = ("stage", "processes", *("x".join(map(str, mesh)) for mesh in MESHES))
    return "\n".join(
        [
            "# The same losses on every mesh",
            "",
            f"`python -m launch.studies.meshes --processes {counts}`: the largest relative",
            "difference of a loss, in training or evaluation, from that of one device, in",
            "float32. Eight devices as data x fsdp x tensor belong to so many processes.",
            "",
            markdown_table([header, *_rows(found)]),
            "",
        ]
    )


def _rows(found: dict[Key, float]) -> Iterator[list[str]]:
    groups = dict.fromkeys((stage, count) for stage, count, _ in found)
    for stage, count in groups:
        yield [stage, str(count), *(f"{found[stage, count, mesh]:.0e}" for mesh in MESHES)]


if __name__ == "__main__":
    sys.exit(main())

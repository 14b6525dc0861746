"""Kill a process of a run of two again and again; the run must end as if nothing had happened.

    python -m launch.studies.kills --out benchmarks/kills.md

Trains `configs/tiny.py` in two processes with two simulated devices each, undisturbed and with ten
kills (SIGKILL, of either process, three of them while a checkpoint is written), and compares the
checksums of every array of the last checkpoint. After each kill the survivor must end within a
minute by itself; then the same command is run again. About three quarters of an hour on two cores;
with `--workdir` a stage that is done is not done again.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from gct_jax.errors import GctError
from gct_jax.runtime.exit_codes import UNFINISHED, exit_code
from gct_jax.runtime.files import replace_when_done
from launch.markdown import markdown_table
from launch.studies.tiny_processes import (
    STAGES,
    local_address,
    simulated_devices,
    stage_arguments,
)

SETTINGS = (
    "loop.log_every=5",
    "loop.eval_every=60",
    "loop.sample_every=0",
    "loop.checkpoint_every=5",
    "loop.mesh=[2, 1, 2]",
    "data.cases=40",
)
LIMIT_SECONDS = 60.0
DEFAULT_STAGES = ["ctvit", "maskgit", "superres"]


class Kill(NamedTuple):
    """A kill: of which process, at which step, whether during a save, and how long the other one
    took to end, with which code."""

    process: int
    step: int
    saving: bool
    seconds: float
    code: int


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 1 if a run ended otherwise than undisturbed."""
    parser = argparse.ArgumentParser(prog="launch.studies.kills", description=__doc__)
    parser.add_argument("--out", required=True, type=Path, help="the log, as Markdown")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--stage", nargs="+", choices=DEFAULT_STAGES, default=DEFAULT_STAGES)
    parser.add_argument("--kills", type=int, default=10, help="of a stage; three in ten in a save")
    parser.add_argument("--steps", type=int, default=240, help="of a run; 24 a kill suffice")
    parser.add_argument("--workdir", type=Path, help="keeps the runs and the log of each stage")
    options = parser.parse_args(arguments)
    equal: list[bool] = []

    def command() -> None:
        rng = random.Random(options.seed)
        logs: dict[str, tuple[list[Kill], int, int]] = {}
        with tempfile.TemporaryDirectory() as folder:
            workdir = options.workdir or Path(folder)
            for stage in options.stage:
                log = workdir / f"{stage}.json"
                if not log.exists():
                    found = study(workdir, stage, options.kills, options.steps, rng)
                    log.write_text(json.dumps(found), encoding="utf-8")
                kills, differing, arrays = json.loads(log.read_text(encoding="utf-8"))
                logs[stage] = [Kill(*kill) for kill in kills], differing, arrays
        text = report(logs)
        with replace_when_done(options.out) as path:
            path.write_text(text, encoding="utf-8")
        print(text)
        equal.extend(differing == 0 for _, differing, _ in logs.values())

    return exit_code("launch.studies.kills", command) or int(not all(equal))


def study(
    folder: Path, stage: str, kills: int, steps: int, rng: random.Random
) -> tuple[list[Kill], int, int]:
    """The kills of a stage, and how many arrays of how many differ in the end."""
    settings = (*SETTINGS, f"loop.steps={steps}")
    for name in STAGES[stage]:
        if not (folder / name).exists():
            alone = [*stage_arguments(folder, name, settings), "loop.mesh=[1, 1, 1]"]
            if name != "t5":
                alone.append(f"data.folder={folder / 'data'}")
            _checked(["launch.train", *alone, "--workdir", str(folder / name), "loop.steps=5"])
    _checked(
        ["launch.prepare", *stage_arguments(folder, stage, SETTINGS), "--out", str(folder / "data")]
    )
    command = [*stage_arguments(folder, stage, settings), f"data.folder={folder / 'data'}"]
    undisturbed, disturbed = folder / f"{stage}-undisturbed", folder / f"{stage}-killed"
    _finish([*command, "--workdir", str(undisturbed)], undisturbed)
    saves = max(1, round(0.3 * kills))
    log = [
        _killed([*command, "--workdir", str(disturbed)], disturbed, i < saves, rng)
        for i in tqdm(range(kills), desc=stage, unit="kill")
    ]
    _finish([*command, "--workdir", str(disturbed)], disturbed)
    one, other = _sums(undisturbed, steps), _sums(disturbed, steps)
    return log, sum(one[name] != other.get(name) for name in one), len(one)


def _checked(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True)
    if done.returncode:
        raise GctError(f"{words[0]} failed: {done.stderr.strip()[-500:]}")


def _finish(arguments: list[str], workdir: Path) -> None:
    codes = [process.wait() for process in _start(arguments, workdir)]
    if codes != [0, 0]:
        raise GctError(f"the run in {workdir} ended with {codes}; see {workdir}.log")


def _start(arguments: list[str], workdir: Path) -> list[subprocess.Popen]:
    """Both processes of a run; what they say goes to a file beside its folder."""
    address, environment = local_address(), simulated_devices(2)
    with open(f"{workdir}.log", "ab") as said:
        return [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "launch.train", *arguments),
                    *("--multi-host", f"{address},2,{i}"),
                ],
                env=environment,
                stderr=said,
            )
            for i in range(2)
        ]


def _killed(arguments: list[str], workdir: Path, saving: bool, rng: random.Random) -> Kill:
    """Start the run, kill one process some steps on, and see the other one end. A run that ends
    unfinished by itself, as on a machine too busy to answer in time, is started again."""
    first = _step(workdir)
    pair = _start(arguments, workdir)
    target = first + rng.randint(8, 20)
    while _step(workdir) < target:
        if any(process.poll() is not None for process in pair):
            codes = {process.wait() for process in pair}
            if codes != {UNFINISHED}:
                raise GctError(f"a run ended by itself with {codes}; see {workdir}.log")
            pair = _start(arguments, workdir)
        time.sleep(0.01)
    while saving and not any(".orbax-checkpoint-tmp" in p.name for p in _checkpoints(workdir)):
        pass
    victim = rng.randrange(2)
    os.kill(_child(pair[victim].pid), signal.SIGKILL)
    start = time.monotonic()
    code = pair[1 - victim].wait(timeout=10 * LIMIT_SECONDS)
    seconds = time.monotonic() - start
    pair[victim].wait()
    if seconds > LIMIT_SECONDS or code != UNFINISHED:
        raise GctError(f"the other process ended after {seconds:.0f} s with {code}")
    return Kill(victim, _step(workdir), saving, seconds, code)


def _child(parent: int) -> int:
    return int(Path(f"/proc/{parent}/task/{parent}/children").read_text().split()[0])


def _checkpoints(workdir: Path) -> list[Path]:
    folder = workdir / "checkpoints"
    return list(folder.iterdir()) if folder.exists() else []


def _step(workdir: Path) -> int:
    """The last one that was logged."""
    try:
        lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return int(json.loads(lines[-1])["step"])
    except (OSError, ValueError, IndexError):
        return 0


def _sums(workdir: Path, step: int) -> dict[str, list]:
    """Checksum of every array of a checkpoint."""
    path = workdir / "checkpoints" / str(step) / "progress" / "metadata"
    items = json.loads(path.read_text(encoding="utf-8"))["arrays"]
    return {f"{item}{name}": value for item in items for name, value in items[item].items()}


def report(logs: dict[str, tuple[list[Kill], int, int]]) -> str:
    """The page."""
    some = "" if [*logs] == DEFAULT_STAGES else f" --stage {' '.join(logs)}"
    lines = [
        "# Killed and gone on",
        "",
        f"`python -m launch.studies.kills{some}`: two processes, SIGKILL of one; then the",
        "same command again.",
    ]
    for stage, (kills, differing, arrays) in logs.items():
        rows = [("kill", "process", "after step", "during a save", "the other ended after, s")]
        rows += [
            (str(i), str(k.process), str(k.step), "yes" if k.saving else "", f"{k.seconds:.1f}")
            for i, k in enumerate(kills, 1)
        ]
        lines += [
            "",
            f"## {stage}: {differing} of {arrays} arrays differ from the undisturbed run",
            "",
            markdown_table(rows),
        ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())

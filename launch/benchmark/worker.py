"""One process of the benchmark: `python -m launch.benchmark.worker JOB.json`.

The job says what to do (`Job`); the answer goes to `<job>.result.json`, outputs beside it as .npy.
Exit code 77 means that memory ran out.
"""

import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from gct_jax.runtime.host import give_back_freed_memory
from launch.benchmark import measure
from launch.benchmark.cases import CEILING, Case, choose

OUT_OF_MEMORY = 77
OUT_OF_MEMORY_WORDS = ("can't allocate memory", "not enough memory", "RESOURCE_EXHAUSTED")
PROMPT = "58 years old female: Large left pleural effusion. Cardiomegaly."


@dataclasses.dataclass(frozen=True)
class Job:
    """What a worker does.

    Attributes:
      side: "prepare", "ours" or "peers".
      cases: names; one, or `CEILING`, unless the side is "prepare".
      folder: where weights and inputs lie.
      started: `time.time()` when the process was begun.
    """

    side: str
    cases: list[str]
    sizes: str
    folder: str
    dtype: str
    calls: int
    threads: int
    started: float = 0.0


def main() -> int:
    """Do the job that the argument names."""
    path = Path(sys.argv[1])
    job = Job(**json.loads(path.read_text()))
    try:
        answer = work(job, path.with_suffix(".npy"))
    except MemoryError as error:
        print(f"out of memory: {error}", file=sys.stderr)
        return OUT_OF_MEMORY
    except RuntimeError as error:  # both frameworks raise it for an allocation that fails
        if not any(words in str(error) for words in OUT_OF_MEMORY_WORDS):
            raise
        print(f"out of memory: {str(error).splitlines()[0]}", file=sys.stderr)
        return OUT_OF_MEMORY
    path.with_suffix(".result.json").write_text(json.dumps(answer))
    return 0


def work(job: Job, output: Path) -> dict[str, Any]:
    """The answer to a job: seconds, peak memory, operations."""
    folder = Path(job.folder)
    if job.cases == [CEILING]:
        if job.side == "peers":
            from launch.benchmark import peers

            return {"ceiling": peers.ceiling(job.sizes, job.threads, job.dtype)}
        from launch.benchmark import ours

        return {"ceiling": ours.ceiling(job.sizes, job.dtype), "device": ours.device()}
    model, cases = choose(job.sizes, job.cases)
    if job.side == "prepare":
        from launch.benchmark.prepare import prepare

        prepare(folder, model, cases)
        return {}
    (case,) = cases
    if case.task == "generate":
        return generate(job.started)
    weights, inputs = folder / f"{case.part}.safetensors", folder / f"{case.name}.npz"
    start = time.perf_counter()
    answer: dict[str, Any] = {}
    if job.side == "peers":
        from launch.benchmark import peers

        call, answer["flops"] = peers.load_call(
            case, model, weights, inputs, job.threads, job.dtype
        )
    else:
        from launch.benchmark import ours

        call = ours.load_call(case, model, weights, inputs, job.dtype)
        answer["compile_seconds"] = time.perf_counter() - start  # loading included
    before = measure.peak_bytes()
    give_back_freed_memory()
    measure.forget_peak()  # of loading and compilation, which happen once
    timed = measure.measure(call, job.calls, Keeper(case, output))
    answer |= {**timed._asdict(), "running_peak_bytes": measure.peak_bytes()}
    answer["peak_bytes"] = max(before, answer["running_peak_bytes"])
    return answer if job.side == "peers" else {**answer, "device": ours.device()}


class Keeper:
    """Writes the first output of a forward pass, or the losses of the first two training steps."""

    def __init__(self, case: Case, path: Path):
        self.losses: list[float] = []
        self.training = case.task == "train"
        self.path = path

    def __call__(self, output: Any) -> None:
        """`output`: a JAX or PyTorch array on any device."""
        if self.training:
            self.losses.append(float(output))
            np.save(self.path, np.array(self.losses))
        elif not self.path.exists():
            np.save(self.path, plain_array(output))


def plain_array(output: Any) -> np.ndarray:
    """An array of JAX or PyTorch in a type that NumPy has: it has no bfloat16."""
    if "bfloat16" in str(output.dtype):
        output = output.float() if hasattr(output, "float") else output.astype("float32")
    return np.asarray(output)


def generate(started: float) -> dict[str, Any]:
    """The whole command with the demo model, from the start of the process to the written files."""
    from gct_jax.cli import main as command

    with tempfile.TemporaryDirectory() as folder:
        if command(["generate", PROMPT, "--out", folder]):
            raise RuntimeError("generate has failed")
        seconds = time.time() - started
        metadata = json.loads((Path(folder) / "metadata.json").read_text())
    peak = measure.peak_bytes()
    return {"seconds": [seconds], "peak_bytes": peak, "stages": metadata["seconds"]}


if __name__ == "__main__":
    sys.exit(main())

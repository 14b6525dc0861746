"""Measure and write JSON, a picture and a table; the package says how.

    python -m launch.benchmark --out benchmarks/cpu.json
    python -m launch.benchmark --out benchmarks/h100.json --no-peers --dtype bfloat16 \\
        --peak-tflops 989

It needs `pip install -e '.[benchmark]'`; the peers, `pip install -e '.[convert,peers]'` and
`pip install --no-deps -r tests/peers.txt`.
"""

import argparse
import datetime
import importlib.util
import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gct_jax.config import ModelConfig
from gct_jax.errors import InputError
from gct_jax.runtime.exit_codes import exit_code
from gct_jax.runtime.files import replace_when_done
from gct_jax.runtime.host import usable_cores
from launch.benchmark.cases import CEILING, SIZES, Case, choose
from launch.benchmark.process import Limits, machine_memory, run_job
from launch.benchmark.report import compare, row_of, table
from launch.benchmark.worker import Job
from launch.extras import require_extras

PEER_MODULES = {
    "phenaki-pytorch": ("torch", "phenaki_pytorch", "vector_quantize_pytorch", "beartype"),
    "imagen-pytorch": ("torch", "imagen_pytorch", "einops_exts", "beartype"),
}
USABLE_MEMORY = 0.9  # of what is free at the start, before a worker is killed
GIGABYTE = 1e9


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    options = parse(arguments)

    def command() -> None:
        require_extras("benchmark")
        results = measure_all(options)
        with replace_when_done(options.out) as temporary:
            temporary.write_text(json.dumps(results, indent=1) + "\n")
        from launch.benchmark.chart import save_chart

        save_chart(options.out.with_suffix(".png"), results)
        print(table(results))

    return exit_code("launch.benchmark", command)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="launch.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="the JSON; the PNG lies beside it")
    parser.add_argument("--only", nargs="+", metavar="CASE", help="measure these cases only")
    parser.add_argument("--sizes", choices=sorted(SIZES), default="published")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of fresh processes (3)")
    parser.add_argument("--calls", type=int, default=3, help="timed calls per process (3)")
    parser.add_argument("--no-peers", action="store_true", help="measure ours alone")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="what is computed in, by peers with torch.autocast (float32)",
    )
    parser.add_argument("--peak-tflops", type=float, help="ceiling to hold against; else measured")
    parser.add_argument(
        "--memory-limit-gb", type=float, help="kill a process beyond this (90 %% of what is free)"
    )
    parser.add_argument("--timeout", type=float, default=3600, help="seconds of a process (3600)")
    return parser.parse_args(arguments)


def measure_all(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds of all cases, as the JSON holds them.

    Raises:
      InputError: an unknown case, a peer that is not installed, or a failed preparation.
    """
    model, cases = choose(options.sizes, options.only)
    peers = not options.no_peers
    if peers:
        require_peers({case.peer for case in cases if case.peer})
    limit = options.memory_limit_gb
    free = machine_memory().available * USABLE_MEMORY
    limits = Limits(int(free if limit is None else limit * GIGABYTE), options.timeout)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        bench = Bench(Path(name), options, limits, model)
        bench.prepare(cases)
        flops = json.loads((bench.folder / "flops.json").read_text())
        measured: dict[tuple[str, str], list[dict[str, Any]]] = {}
        torch_ceiling = peers and any(case.peer for case in cases)
        jobs = [
            (case, side)
            for case in (None, *cases)
            for side in ("ours", "peers")
            if side == "ours" or (peers and (case.peer if case else torch_ceiling))
        ]
        bar = tqdm(total=len(jobs) * options.repeats, unit="process", dynamic_ncols=True)
        for round_number in range(options.repeats):
            for case, side in jobs:
                what = case.name if case else CEILING
                bar.set_description(f"{what}, {side}")
                earlier = measured.setdefault((what, side), [])
                if not earlier or earlier[-1]["status"] == "ok":  # a failure would come again
                    if case and case.task == "generate" and round_number == 0:
                        bench.measure(side, what, round_number)  # compiles for the later ones
                    earlier.append(bench.measure(side, what, round_number))
                    if what == CEILING:
                        require_ok("measuring the ceiling", earlier[-1])
                bar.update()
        bar.close()
        ceiling, device = best_ceiling(measured, options.peak_tflops)
        rows = [
            row_of(
                case,
                measured[case.name, "ours"],
                measured.get((case.name, "peers"), []),
                flops.get(case.name),
                ceiling,
                compare(case, bench.output("ours", case.name), bench.output("peers", case.name)),
            )
            for case in cases
        ]
    return {"run": describe(options, limits, device), "ceiling": ceiling, "cases": rows}


class Bench:
    """Starts workers on files in one temporary folder."""

    def __init__(
        self, folder: Path, options: argparse.Namespace, limits: Limits, model: ModelConfig
    ):
        self.folder, self.options, self.limits, self.model = folder, options, limits, model
        self.cores = usable_cores()

    def job(self, side: str, cases: list[str]) -> Job:
        """A worker's orders."""
        options = self.options
        return Job(
            side, cases, options.sizes, str(self.folder), options.dtype, options.calls, self.cores
        )

    def prepare(self, cases: list[Case]) -> None:
        """Have weights, inputs and operation counts written.

        Raises:
          InputError: that has failed.
        """
        job = self.job("prepare", [case.name for case in cases])
        answer = run_job(job, self.folder / "prepare.json", self.limits)
        require_ok("preparing the benchmark", answer)

    def measure(self, side: str, what: str, round_number: int) -> dict[str, Any]:
        """One process of one side."""
        path = self.folder / f"{side}-{what}.json"
        if round_number == 0:
            self.output(side, what).unlink(missing_ok=True)
        return run_job(self.job(side, [what]), path, self.limits)

    def output(self, side: str, what: str) -> Path:
        """Where a worker leaves its output."""
        return self.folder / f"{side}-{what}.npy"


def require_peers(packages: set[str]) -> None:
    """Raise InputError unless the packages can be imported."""
    needed = sorted({module for package in packages for module in PEER_MODULES[package]})
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"{', '.join(missing)} not installed; pip install -e '.[convert,peers]' and "
            "pip install --no-deps -r tests/peers.txt, or give --no-peers"
        )


def require_ok(what: str, answer: dict[str, Any]) -> None:
    """Raise InputError unless a worker has ended well."""
    if answer["status"] != "ok":
        raise InputError(f"{what}: {answer['status']}: {answer['detail']}")


def best_ceiling(
    measured: dict[tuple[str, str], list[dict[str, Any]]], peak_tflops: float | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The highest rate of any round and framework, and the device that ours ran on."""
    ours = measured[CEILING, "ours"]
    answers = [*ours, *measured.get((CEILING, "peers"), [])]
    rates = {k: max(a["ceiling"][k] for a in answers) for k in ("matmul", "convolution")}
    if peak_tflops is None:
        return {**rates, "source": "measured"}, ours[0]["device"]
    peak = {"matmul": peak_tflops * 1e12, "convolution": peak_tflops * 1e12}
    return {**peak, "source": "given", "measured": rates}, ours[0]["device"]


def describe(options: argparse.Namespace, limits: Limits, device: dict[str, Any]) -> dict[str, Any]:
    """What the numbers depend on."""
    name = processor() if device["platform"] == "cpu" else device["kind"]
    return {
        "device": name,
        "platform": device["platform"],
        "cores": usable_cores(),
        "memory_gb": machine_memory().total / GIGABYTE,
        "memory_limit_gb": limits.memory_bytes / GIGABYTE,
        "dtype": options.dtype,
        "sizes": options.sizes,
        "repeats": options.repeats,
        "calls": options.calls,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "python": platform.python_version(),
        "versions": device["versions"],
    }


def processor() -> str:
    """Name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    sys.exit(main())

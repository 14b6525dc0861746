"""Compile training steps and sampler of the published model for TPUs, without a TPU.

    python -m launch.tpu_compile --topology v5e:2x4 --out benchmarks/tpu_v5e8

The real TPU compiler (package libtpu, `pip install -e '.[tpu,train]'`) says how many bytes of each
chip's memory a program takes, which collectives it uses and how long it expects to run; nothing is
run. Writes OUT.json and OUT.md and prints the table. A program that does not fit is a result too.
Programs take minutes each: with `--only`, the others that OUT.json holds of the same topology, mesh
and batches stay.
"""

import argparse
import collections
import functools
import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxtyping import PyTree

from gct_jax.chips import chip
from gct_jax.errors import ConfigError, InputError
from gct_jax.runtime.exit_codes import exit_code
from gct_jax.runtime.files import replace_when_done
from launch.extras import require_extras

COLLECTIVES = re.compile(
    r"= \S+ (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)
PROGRAMS = (
    "attention",
    "attention gradients",
    "train ctvit",
    "train maskgit",
    "train superres",
    "sample",
    "superres",
)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line for input that cannot be used."""
    parser = argparse.ArgumentParser(prog="launch.tpu_compile", description=__doc__)
    parser.add_argument("--topology", default="v5e:2x4", help="for instance v5e:2x4, v5p:2x2x1")
    parser.add_argument(
        "--mesh", type=mesh_shape, default="-1,4,1", help="chips along data, fsdp, tensor"
    )
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--rows", type=int, default=8, help="volumes of a batch")
    parser.add_argument("--slice-rows", type=int, default=32, help="slices of a batch")
    parser.add_argument("--only", nargs="+", choices=PROGRAMS, default=PROGRAMS)
    parser.add_argument("--out", type=Path, help="OUT.json and OUT.md")
    options = parser.parse_args(arguments)

    def command() -> None:
        earlier = read_earlier(options.out.with_suffix(".json")) if options.out else None
        require_extras("tpu", "train")
        results = run(options)
        if earlier:
            results = with_earlier(results, earlier)
        text = markdown(results)
        print(text)
        if options.out:
            for suffix, content in ((".json", json.dumps(results, indent=1) + "\n"), (".md", text)):
                with replace_when_done(options.out.with_suffix(suffix)) as temporary:
                    temporary.write_text(content)

    return exit_code("launch.tpu_compile", command)


def mesh_shape(text: str) -> tuple[int, ...]:
    """ "-1,4,1" as integers.

    Raises:
      argparse.ArgumentTypeError: it is not three whole numbers.
    """
    sizes = text.split(",")
    if len(sizes) != 3 or not all(re.fullmatch(r"-?\d+", size) for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r} is not three whole numbers such as -1,4,1")
    return tuple(int(size) for size in sizes)


def read_earlier(path: Path) -> dict[str, Any] | None:
    """What an earlier call wrote to `path`, None if there is no such file.

    Raises:
      InputError: something else is in it.
    """
    if not path.exists():
        return None
    try:
        earlier: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        programs = [row["program"] for row in earlier["programs"]]
    except (OSError, ValueError, KeyError, TypeError):
        programs = [None]
    if not all(isinstance(name, str) for name in programs):
        raise InputError(f"{path} holds no table of this command; delete it or change --out")
    return earlier


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Compile every program asked for.

    Raises:
      ConfigError: the topology or the mesh is impossible.
    """
    mesh = tpu_mesh(options.topology, options.mesh)

    from configs import base
    from launch import tpu_programs as programs

    lowered: dict[str, Callable[[], Any]] = {
        name: functools.partial(
            programs.attend, base.model(), mesh, options.rows, options.dtype, backward=backward
        )
        for name, backward in (("attention", False), ("attention gradients", True))
    }
    for stage, rows in (
        ("ctvit", options.rows),
        ("maskgit", options.rows),
        ("superres", options.slice_rows),
    ):
        config = programs.with_rows(getattr(base, stage)(), rows, options.dtype)
        lowered[f"train {stage}"] = functools.partial(programs.train_step, config, mesh)
    lowered["sample"] = functools.partial(
        programs.sample_volumes, base.model(), mesh, options.rows, options.dtype
    )
    lowered["superres"] = functools.partial(
        programs.super_resolve, base.model(), mesh, options.slice_rows, options.dtype
    )
    kind = mesh.devices.flat[0].device_kind
    rows = []
    for name in options.only:
        print(f"compiling {name} for {options.topology} ...", file=sys.stderr, flush=True)
        rows.append({"program": name, **compiled_facts(lowered[name], kind)})
    return {
        "topology": options.topology,
        "chip": kind,
        "mesh": dict(mesh.shape),
        "dtype": options.dtype,
        "rows": {"volumes": options.rows, "slices": options.slice_rows},
        "programs": rows,
    }


def tpu_mesh(topology: str, shape: tuple[int, ...]) -> Any:
    """Mesh of a TPU slice that need not exist.

    Raises:
      ConfigError: there is no such slice or mesh.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no cloud machine to ask

    from jax.experimental import topologies

    from gct_jax.sharding import make_mesh

    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:
        line = str(error).strip().splitlines()[0]
        raise ConfigError(f"--topology {topology}: {line}") from None
    return make_mesh(shape, list(devices))


def compiled_facts(lower: Callable[[], Any], kind: str) -> dict[str, Any]:
    """What the compiler says about a program, bytes and FLOPs per chip."""
    start = time.perf_counter()
    try:
        compiled = lower().compile()
    except Exception as error:  # the compiler's refusals have no type of their own
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        found = re.search(r"Used ([\d.]+\w) of ([\d.]+\w)", str(error))
        return {"refused": f"needs {found[1]} of {found[2]}" if found else "out of memory"}
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    flops, moved = cost["flops"], cost["bytes accessed"]
    peak_flops, bandwidth = chip(kind) or (float("nan"), float("nan"))
    # What is donated is counted among arguments and outputs, but exists once.
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return {
        "gigabytes": (held - memory.alias_size_in_bytes + memory.temp_size_in_bytes) / 1e9,
        "arguments_gigabytes": memory.argument_size_in_bytes / 1e9,
        "temporary_gigabytes": memory.temp_size_in_bytes / 1e9,
        "teraflops": flops / 1e12,
        "moved_gigabytes": moved / 1e9,
        "floor_seconds": max(flops / peak_flops, moved / bandwidth),
        "predicted_seconds": cost.get("optimal_seconds"),
        "collectives": dict(collections.Counter(COLLECTIVES.findall(compiled.as_text()))),
        "compile_seconds": round(time.perf_counter() - start, 1),
    }


def with_earlier(results: dict[str, PyTree], earlier: dict[str, Any]) -> dict[str, Any]:
    """`results` with the programs that only `earlier` results of the same settings hold."""
    if {**results, "programs": None} != {**earlier, "programs": None}:
        return results
    rows = {row["program"]: row for row in (*earlier["programs"], *results["programs"])}
    return {**results, "programs": [rows[name] for name in PROGRAMS if name in rows]}


def markdown(results: dict[str, PyTree]) -> str:
    """The table, with what its columns mean."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in results["mesh"].items())
    lines = [
        f"# Programs of the published model compiled for {results['topology']}",
        "",
        f"{results['chip']}, mesh {mesh}, {results['dtype']}; batches of "
        f"{results['rows']['volumes']} volumes or {results['rows']['slices']} slices. All figures "
        "are the compiler's, for one chip; nothing was run. Predicted: the compiler's own estimate "
        "of the seconds, given only where it has one for every operation; floor: FLOPs and bytes "
        "over the chip's data sheet. The compiler counts the body of a loop once: the figures of "
        "`sample` and `superres` are those of one step.",
        "",
        "| program | GB in all | arguments | temporary | TFLOP | GB moved | floor, ms "
        "| predicted, ms | collectives |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in results["programs"]:
        if "refused" in row:
            lines.append(f"| {row['program']} | {row['refused']} |" + " |" * 7)
            continue
        predicted = row["predicted_seconds"]
        cells = [
            row["program"],
            f"{row['gigabytes']:.2f}",
            f"{row['arguments_gigabytes']:.2f}",
            f"{row['temporary_gigabytes']:.2f}",
            f"{row['teraflops']:.2f}",
            f"{row['moved_gigabytes']:.1f}",
            f"{1e3 * row['floor_seconds']:.1f}",
            f"{1e3 * predicted:.1f}" if predicted and predicted > 0 else "-",
            ", ".join(f"{count} {name}" for name, count in row["collectives"].items()) or "none",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())

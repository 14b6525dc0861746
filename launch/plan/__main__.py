"""What training and generation would take on a TPU slice, by the real compiler, without a TPU.

    python -m launch.plan --config configs/base.py:maskgit --topology v5e:2x4
    python -m launch.plan --config configs/base.py --topology v5e:2x4 --mesh 2,4,1 --rows 8 \\
        --slice-rows 32 --program train generate --out benchmarks/plan_base dtype=bfloat16

Compiles the functions that `launch.train` and `generate` run. Without a stage --config means all of
them; without --mesh, meshes are ranked by arithmetic and the best two are compiled. Of several
topologies, --rows and --slice-rows are those of the first, the others get as many a chip. It needs
`pip install -e '.[tpu,train]'`; a program takes a minute or several to compile, and a stopped plan
goes on with --resume.
"""

import argparse
import dataclasses
import functools
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gct_jax.errors import ConfigError
from gct_jax.runtime.exit_codes import exit_code
from gct_jax.runtime.files import replace_when_done
from launch.extras import require_extras
from launch.options import load_config

if TYPE_CHECKING:
    from gct_jax.training.config import TrainConfig
    from launch.plan.hlo import Instruction
    from launch.plan.page import Row

PUBLISHED = ("ctvit", "maskgit", "superres")
COMPILED_MESHES = 2


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line for input that cannot be used."""
    options = parsed(arguments)

    def command() -> None:
        require_extras("tpu", "train")
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no cloud machine to ask
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nor a chip to share
        write(options, shlex.join(["python", "-m", "launch.plan", *(arguments or sys.argv[1:])]))

    return exit_code("launch.plan", command)


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="launch.plan", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--config", required=True, metavar="FILE[:NAME]")
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="as for launch.train")
    parser.add_argument(
        "--topology", nargs="+", default=["v5e:2x4"], help="such as v5e:2x4, v5p:2x2x1, v6e:16x16"
    )
    parser.add_argument("--mesh", type=mesh_shape, help="chips along data, fsdp, tensor")
    parser.add_argument("--rows", type=positive, help="volumes of a batch (the configuration's)")
    parser.add_argument("--slice-rows", type=positive, help="slices of a batch")
    parser.add_argument(
        "--program", nargs="+", choices=("train", "generate", "attention"), default=["train"]
    )
    parser.add_argument("--dollars-per-chip-hour", type=float, metavar="PRICE")
    parser.add_argument("--movers", type=int, default=0, help="list so many of the largest")
    parser.add_argument("--out", type=Path, help="OUT.md, OUT.json, and OUT.png of several slices")
    parser.add_argument("--resume", action="store_true", help="take what OUT.json has from there")
    return parser.parse_intermixed_args(arguments)


def mesh_shape(text: str) -> tuple[int, ...]:
    """ "-1,4,1" as integers.

    Raises:
      argparse.ArgumentTypeError: it is not three whole numbers.
    """
    sizes = text.split(",")
    if len(sizes) != 3 or not all(re.fullmatch(r"-?\d+", size) for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r} is not three whole numbers such as -1,4,1")
    return tuple(int(size) for size in sizes)


def positive(text: str) -> int:
    """A whole number above 0."""
    if not re.fullmatch(r"[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def write(options: argparse.Namespace, command: str) -> None:
    """Compile, print the page, and write it if asked to.

    Raises:
      ConfigError: the topology, the mesh, the configuration or its batch is impossible.
    """
    from gct_jax.chips import chip
    from launch.plan.chart import save_chart
    from launch.plan.page import movers, page
    from launch.plan.results import Results

    configs = [stage_config(options, name) for name in stage_names(options.config)]
    slices = [topology_devices(name) for name in options.topology]
    names = ("config", "overrides", "rows", "slice_rows", "topology")
    asked = {name: getattr(options, name) for name in names}
    out = options.out.with_suffix(".json") if options.out else None
    kept = Results(out, asked, resume=options.resume)
    pages, rows_of = [], {}
    for topology, devices in zip(options.topology, slices, strict=True):
        kind = devices[0].device_kind
        sheet = chip(kind)
        if sheet is None:
            raise ConfigError(f"--topology {topology}: no data sheet of {kind} in gct_jax/chips.py")
        rows: list[Row] = []
        lists = []
        once = functools.partial(kept.compiled, topology)
        for row, moving in compiled(options, configs, devices, len(slices[0]), once):
            rows.append(row)
            if options.movers and moving:
                mesh = "x".join(map(str, row.mesh))
                lists.append(f"## {row.program}, {mesh}\n\n{movers(moving, options.movers)}")
        title = f"{configs[0].model.name} on {topology}"
        price = options.dollars_per_chip_hour
        text = page(title, command, kind, sheet, len(devices), rows, price)
        pages.append("\n".join([text, *lists]))
        rows_of[topology] = len(devices), sheet, rows
    text = "\n".join(pages)
    print(text)
    if options.out:
        with replace_when_done(options.out.with_suffix(".md")) as temporary:
            temporary.write_text(text, encoding="utf-8")
        if len(slices) > 1:
            save_chart(options.out.with_suffix(".png"), list(rows_of.values()))


def stage_names(spec: str) -> list[str]:
    """FILE:NAME, or FILE for each published stage that it has."""
    file, colon, _ = spec.rpartition(":")
    return [spec] if colon and file else [f"{spec}:{stage}" for stage in PUBLISHED]


def stage_config(options: argparse.Namespace, spec: str) -> "TrainConfig":
    """The configuration with the rows that were asked for.

    Raises:
      ConfigError: there is no such configuration, or no such field.
    """
    config = load_config(spec, options.overrides)
    rows = options.slice_rows if config.stage == "superres" else options.rows
    loop = dataclasses.replace(config.loop, batch_size=rows or config.loop.batch_size)
    return dataclasses.replace(config, loop=loop)


def topology_devices(topology: str) -> list:
    """The chips of a TPU slice that need not exist.

    Raises:
      ConfigError: there is no such slice.
    """
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:
        line = str(error).strip().splitlines()[0]
        raise ConfigError(f"--topology {topology}: {line}") from None
    return list(found.devices)


def compiled(
    options: argparse.Namespace,
    configs: Sequence["TrainConfig"],
    devices: list,
    first: int,
    once: Callable[..., tuple["Row", Sequence["Instruction"]]],
) -> Iterator[tuple["Row", Sequence["Instruction"]]]:
    """Every program asked for, for one slice, with what it moves.

    first: chips of the first topology, whose rows `options` states. once: compiles a program.
    """
    from gct_jax.sharding import make_mesh
    from launch.plan import programs

    share = len(devices) / first
    mesh = make_mesh(options.mesh, devices) if options.mesh else None
    if "train" in options.program:
        for config in configs:
            loop = dataclasses.replace(
                config.loop, batch_size=max(1, round(config.loop.batch_size * share))
            )
            scaled = dataclasses.replace(config, loop=loop)
            yield from trained(scaled, mesh, devices, once)
    mesh = mesh or make_mesh((-1, 1, 1), devices)
    config, prompts = configs[0], len(devices)
    if "generate" in options.program:
        model, dtype = config.model, config.dtype
        slices = round((options.slice_rows or 4 * first) * share)
        for name, rows, lower in (
            ("generate: tokens and volumes", 1, programs.sample_volumes),
            ("generate: a step of super-resolution", slices, programs.super_resolve),
        ):
            yield once(name, mesh, rows, functools.partial(lower, model, mesh, rows, dtype))
    if "attention" in options.program:
        for name, backward in (("attention", False), ("attention, gradients", True)):
            attend = functools.partial(
                programs.attend, config.model, mesh, prompts, config.dtype, backward=backward
            )
            yield once(name, mesh, prompts, attend)


def trained(
    config: "TrainConfig",
    mesh: Any,
    devices: list,
    once: Callable[..., tuple["Row", Sequence["Instruction"]]],
) -> Iterator[tuple["Row", Sequence["Instruction"]]]:
    """The training step on a mesh, or on the best two."""
    from gct_jax.chips import chip
    from gct_jax.sharding import make_mesh
    from gct_jax.training.loop import require_split
    from launch.plan import programs
    from launch.plan.meshes import ranked

    meshes = [mesh] if mesh else []
    if not meshes:
        sheet = chip(devices[0].device_kind)
        assert sheet  # `write` has looked
        found = ranked(config, programs.abstract_state(config), devices, sheet)
        if not found:
            raise ConfigError(
                f"no mesh of {len(devices)} chips splits {config.loop.batch_size} rows; give "
                "--rows, or --slice-rows for slices"
            )
        for one in found[: 2 * COMPILED_MESHES]:
            shape = "x".join(map(str, one.shape))
            print(
                f"{config.stage} on {shape}: {one.state_bytes / 1e9:.2f} GB of state a chip, "
                f"about {one.received_bytes / 1e9:.2f} GB received",
                file=sys.stderr,
            )
        meshes = [make_mesh(one.shape, devices) for one in found[:COMPILED_MESHES]]
    for chosen in meshes:
        require_split(config.loop, chosen)
        lower = functools.partial(programs.train_step, config, chosen)
        yield once(f"train {config.stage}", chosen, config.loop.batch_size, lower)


if __name__ == "__main__":
    sys.exit(main())

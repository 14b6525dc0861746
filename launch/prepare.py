"""Prepare, once, what stages train on.

    python -m launch.prepare --source ct_rate --root /data/CT-RATE --grid base --out shards/ct_rate
    python -m launch.prepare --source folder --root my_cts --reports reports.csv --grid demo \\
        --out shards/mine
    python -m launch.prepare --tokens shards/mine --from out/ctvit --from T5 --out shards/tokens
    python -m launch.prepare --pairs shards/mine --from out/ctvit --out shards/pairs

make shards, which `launch.train` streams by data.source=shards data.folder=FOLDER; they need
`pip install '.[train,data]'`. Without TensorFlow, one process writes arrays of a configuration's
cases, which `launch.train` takes as data.folder=FOLDER:

    python -m launch.prepare --config configs/demo.py:ctvit --out out/pool
    python -m launch.prepare --config configs/demo.py:maskgit --from out/ctvit --out out/pool

What exists is kept, so the same command resumes. The exit code is 0 even if cases were rejected,
unless --strict; 2 if something was refused.
"""

import argparse
import importlib
import os
import sys
from pathlib import Path

from gct_jax.errors import ConfigError
from gct_jax.runtime.exit_codes import exit_code
from launch.extras import require_extras
from launch.options import add_network_options

WRITERS = {
    "source": "launch.prepare_volumes",
    "tokens": "launch.prepare_tokens",
    "pairs": "launch.prepare_pairs",
    "config": "launch.prepare_arrays",
}


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line for input that cannot be used."""
    options = parser().parse_intermixed_args(arguments)

    def command() -> None:
        check(options)
        require_extras("train", *([] if options.config else ["data"]))
        chosen = next(name for name in WRITERS if getattr(options, name))
        importlib.import_module(WRITERS[chosen]).run(options)

    return exit_code("launch.prepare", command)


def parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(
        prog="launch.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--source", metavar="NAME", help="ct_rate, folder, generatect, MODULE:CLASS")
    what.add_argument("--tokens", type=Path, metavar="FOLDER", help="of volumes in shards")
    what.add_argument("--pairs", type=Path, metavar="FOLDER", help="of volumes in shards")
    what.add_argument("--config", metavar="FILE:NAME", help="arrays, without TensorFlow")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER")
    add_network_options(parser)

    source = parser.add_argument_group("of --source")
    source.add_argument("--root", default="", metavar="FOLDER", help="where the CTs lie")
    source.add_argument("--reports", default="", metavar="CSV", help="columns path, report, ...")
    source.add_argument(
        "--grid", default="", metavar="GRID", help="tiny, demo, base, DxHxW[@MMxMMxMM]"
    )
    source.add_argument(
        "--depths", default="", metavar="N,N,...", help="of slices: each CT gets the least it needs"
    )
    source.add_argument(
        "--exclude", action="append", default=[], metavar="FILE", help="cases to leave out"
    )
    source.add_argument(
        "--text", default="impressions", choices=("findings", "impressions", "both")
    )
    source.add_argument("--one-per-scan", action="store_true", help="no further reconstructions")
    source.add_argument(
        "--held-out", type=int, metavar="N", help="cases, without a split (16, a fifth at most)"
    )
    source.add_argument("--cases", type=int, metavar="N", help="at most so many (all)")
    source.add_argument("--strict", action="store_true", help="a rejected case is an error")
    source.add_argument("--names", action="store_true", help="file names in the report")

    work = parser.add_argument_group("of the work")
    work.add_argument("--workers", type=int, default=usable_cores(), help="processes (all cores)")
    work.add_argument("--shards", type=int, default=1, metavar="COUNT", help="machines at work")
    work.add_argument("--shard", type=int, metavar="I", help="this one, from 0")
    work.add_argument("--cases-per-shard", type=int, metavar="N")
    work.add_argument(
        "--slices-per-case", type=int, default=16, metavar="N", help="of --pairs (16)"
    )
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="of --config")
    return parser


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check(options: argparse.Namespace) -> None:
    """Raise ConfigError for options that do not go together, or numbers outside their range."""
    if options.source and not options.grid:
        raise ConfigError("--source needs --grid: demo, base or DxHxW@MMxMMxMM")
    if not options.config and options.overrides:
        raise ConfigError(f"{options.overrides[0]}: field=value goes with --config only")
    if options.shard is None and options.shards > 1:
        raise ConfigError(
            f"--shards {options.shards} needs --shard I: which machine this is, from 0"
        )
    options.shard = options.shard or 0
    if not 0 <= options.shard < options.shards:
        raise ConfigError(
            f"--shard {options.shard} of --shards {options.shards}: count machines from 0"
        )
    for name in ("workers", "cases_per_shard", "slices_per_case", "held_out", "cases"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value} must be at least 1")


if __name__ == "__main__":
    sys.exit(main())

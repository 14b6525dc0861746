"""What preparing and streaming CTs costs, beside what else one could do.

    python -m launch.benchmark.data --out benchmarks/cpu_data.md

makes a CT-RATE tree of real-sized synthetic CTs in a temporary folder and times, each in a process
of its own: preparing; streaming volumes (201 x 128 x 128) and tokens (101 x 8 x 8) from shards; the
same through Grain from ArrayRecord; reading as GenerateCT does, which unpacks and resizes the whole
NIfTI file for every item; what the loader adds to a training step of configs/demo.py; and memory
over 10,000 items. Needs `pip install -e '.[train,data,benchmark]'`, for Grain also '.[peers]'.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
from pathlib import Path

from gct_jax.runtime.exit_codes import exit_code
from gct_jax.runtime.files import replace_when_done
from launch.extras import require_extras

ITEMS = {"volumes": 400, "tokens": 4000}  # streamed while timed
FLAT_ITEMS = 10_000


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line for input that cannot be used."""
    parser = argparse.ArgumentParser(
        prog="launch.benchmark.data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="the table, Markdown")
    parser.add_argument("--files", type=int, default=4, help="CTs of the tree (4)")
    parser.add_argument("--ct", type=Path, help="also prepare this CT, and say so")
    options = parser.parse_args(arguments)

    def command() -> None:
        require_extras("train", "data", "benchmark")
        text = run(options.files, options.ct)
        with replace_when_done(options.out) as temporary:
            temporary.write_text(text, encoding="utf-8")
        print(text)

    return exit_code("launch.benchmark.data", command)


def run(files: int, ct: Path | None) -> str:
    """The table."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        alone("make_tree", root, files)
        prepared = alone("prepare", root, None)
        own = alone("prepare", root, str(ct)) if ct else None
        alone("make_shards", root)
        rows = {}
        for kind, count in ITEMS.items():
            for peer in ("shards", "grain", "reference"):
                items = count if peer != "reference" else 4
                rows[kind, peer] = alone(f"stream_{peer}", root, kind, items)
        step = alone("training_step", root)
        flat = alone("memory", root, FLAT_ITEMS)
    return table(prepared, own, rows, step, flat)


def alone(name: str, root: Path, *arguments: object) -> dict:
    """Call `launch.benchmark.data_cases.NAME` in a fresh process; None of a peer that is missing
    reads as an empty result."""
    print(name, *arguments, file=sys.stderr)
    context = multiprocessing.get_context("spawn")
    result = root / "result.json"
    process = context.Process(target=_call, args=(name, str(root), str(result), arguments))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{name} ended with code {process.exitcode}")
    found: dict = json.loads(result.read_text())
    return found


def _call(name: str, root: str, result: str, arguments: tuple) -> None:
    from launch.benchmark import data_cases

    found = getattr(data_cases, name)(Path(root), *arguments)
    Path(result).write_text(json.dumps(found or {}))


def table(prepared: dict, own: dict | None, rows: dict, step: dict, flat: dict) -> str:
    """Markdown."""
    import jax
    import tensorflow

    from gct_jax.generation import device_name

    lines = [
        "# Data: preparing and streaming CTs",
        "",
        f"`python -m launch.benchmark.data` on {device_name()}, JAX {jax.__version__}, TensorFlow "
        f"{tensorflow.__version__}; each row in a process of its own.",
        "",
        "| preparing, one process | s a CT | MB read | MB written |",
        "|---|---:|---:|---:|",
        *(
            f"| {what} | {found['seconds']:.2f} | {found['read_mb']:.0f} | {found['mb']:.2f} |"
            for what, found in (
                ("synthetic, 512 x 512 x 200 to 400, to 201 x 128 x 128", prepared),
                (f"{own['name']}, to 201 x 128 x 128" if own else "", own),
            )
            if found
        ),
        "",
        "| streaming | items/s | CPU ms an item | peak MB | times the reference |",
        "|---|---:|---:|---:|---:|",
    ]
    names = {"shards": "shards, tf.data", "grain": "ArrayRecord, Grain", "reference": "reference"}
    for (kind, peer), found in rows.items():
        if not found:
            lines.append(f"| {kind}: {names[peer]} | not installed | | | |")
            continue
        times = found["per_second"] / rows[kind, "reference"]["per_second"]
        lines.append(
            f"| {kind}: {names[peer]} | {found['per_second']:,.1f} | {found['cpu_ms']:,.2f} | "
            f"{found['peak_mb']:,.0f} | {times:,.0f} |"
        )
    added = 100 * (step["streamed"] / step["fixed"] - 1)
    lines += [
        "",
        f"A CT-ViT step of configs/demo.py takes {step['fixed']:.3f} s on one batch again and "
        f"again and {step['streamed']:.3f} s on streamed ones ({added:+.1f} %); of it the loop "
        f"waits {1000 * step['waiting']:.1f} ms for the batch.",
        "",
        f"Memory over {FLAT_ITEMS:,} items: {flat['early_mb']:,.0f} MB after {FLAT_ITEMS // 10:,}, "
        f"{flat['late_mb']:,.0f} MB at the end.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())

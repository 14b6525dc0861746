"""`generate`: from a sentence to a CT volume, its preview and its metadata."""

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gct_jax.commands.argument_types import count, seed_list, seed_number, weight
from gct_jax.commands.prompt_table import Request, read_prompt_table
from gct_jax.errors import InputError
from gct_jax.notes import tell
from gct_jax.runtime.files import replace_files_when_done
from gct_jax.runtime.stopping import check, deferred

if TYPE_CHECKING:
    from gct_jax.volumes.ct import CT

UNITS = {"tokens": "step", "superres": "slice"}
EXAMPLE = "58 years old female: Large left pleural effusion. Cardiomegaly."


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "generate",
        help="text to a CT volume",
        description="Writes volume.nii.gz (int16 HU, RAS), preview.png and metadata.json.",
        epilog=f'example: python -m gct_jax generate "{EXAMPLE}" --out out/',
    )
    parser.add_argument("prompt", nargs="?", help="'AGE years old SEX: findings'")
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE.csv",
        help="many prompts: columns prompt and, if wanted, name and seed; one subfolder of --out "
        "per row; without a seed column row i (from 0) uses --seed + i",
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="output folder (out)")
    parser.add_argument("--model", type=Path, help="model folder (the demo model)")
    parser.add_argument("--slices", type=count, help="number of axial slices")
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=seed_number, default=0, help="random seed (0)")
    seeds.add_argument(
        "--seeds",
        type=seed_list,
        metavar="A,B,C",
        help="one volume of the prompt for each seed, in subfolders seed_A, ... of --out",
    )
    parser.add_argument(
        "--batch",
        type=count,
        default=1,
        metavar="N",
        help="volumes sampled at a time (1); a volume does not depend on it",
    )
    parser.add_argument("--guidance", type=weight, help="how strictly the text is followed; 1: off")
    parser.add_argument("--steps", type=count, help="token decoding steps")
    parser.add_argument(
        "--temperature", type=weight, help="how freely tokens are drawn; 0: always the likeliest"
    )
    parser.add_argument("--sr-steps", type=count, help="diffusion steps of the super-resolution")
    parser.add_argument(
        "--no-superres", action="store_true", help="stop at the low-resolution volume"
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="type of computation (auto: bfloat16 on accelerators, float32 on a CPU)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Check everything, then sample the volumes, `--batch` at a time.

    Raises:
      GctError: bad input; nothing was written unless earlier batches were finished.
    """
    requests = read_requests(arguments)

    with deferred():  # importing can swallow the exception of a signal
        import gct_jax
        from gct_jax.generation import generate_batches
        from gct_jax.runtime.numerics import prepare_jax

    prepare_jax("gct")
    room = min(arguments.batch, len(requests))
    bars = ProgressBars()
    batches = generate_batches(
        gct_jax.load_model(arguments.model),
        [request.prompt for request in requests],
        seeds=[request.seed for request in requests],
        slices=arguments.slices,
        steps=arguments.steps,
        temperature=arguments.temperature,
        guidance=arguments.guidance,
        superres=not arguments.no_superres,
        superres_steps=arguments.sr_steps,
        dtype=arguments.dtype,
        batch=room,
        on_progress=bars,
        on_note=tell,
    )
    with contextlib.closing(bars):
        for first in range(0, len(requests), room):
            write_batch(requests[first : first + room], batches)


def write_batch(requests: list[Request], batches: Iterator[list["CT"]]) -> None:
    """Take the next CTs and write the three files of each, all of them or none."""
    from gct_jax.volumes.ct import CT_FILES
    from gct_jax.volumes.grid import by

    with contextlib.ExitStack() as unfinished:
        # Folders first: one that cannot be written to is found out before the long part.
        writers = []
        for request in requests:
            writer = unfinished.enter_context(contextlib.ExitStack())
            folder = writer.enter_context(replace_files_when_done(request.folder, CT_FILES))
            writers.append((writer, folder))
        for request, ct, (writer, folder) in zip(requests, next(batches), writers, strict=True):
            ct.write_files(folder)
            writer.close()  # moves the files to where they belong
            size, spacing = by(ct.grid.shape), by(ct.spacing_mm)
            path = request.folder / CT_FILES[0]
            print(f"{path}: {size} voxels of {spacing} mm, seed {request.seed}")


def read_requests(arguments: argparse.Namespace) -> list[Request]:
    """What to generate, from the prompt or the table of prompts.

    Raises:
      InputError: both or neither are given, or the table is unusable.
    """
    if (arguments.prompt is None) == (arguments.prompts is None):
        raise InputError(f'give either a prompt, for example "{EXAMPLE}", or --prompts FILE.csv')
    if arguments.prompt is not None and arguments.seeds is None:
        return [Request(arguments.prompt, arguments.seed, arguments.out)]
    if arguments.prompt is not None:
        return [
            Request(arguments.prompt, seed, arguments.out / f"seed_{seed}")
            for seed in arguments.seeds
        ]
    if arguments.seeds is not None:
        raise InputError("--seeds goes with one prompt; give --prompts FILE.csv a column seed")
    return read_prompt_table(arguments.prompts, arguments.seed, arguments.out)


class ProgressBars:
    """A bar on stderr for every stage that reports its progress."""

    def __init__(self) -> None:
        self._bars: dict[str, Any] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` steps or slices of the stage are finished."""
        from tqdm import tqdm

        check()
        if stage not in self._bars:
            self._bars[stage] = tqdm(desc=f"{stage:8}", total=total, unit=UNITS[stage])
        bar = self._bars[stage]
        bar.update(done - bar.n)
        if done == total:
            self._bars.pop(stage).close()

    def close(self) -> None:
        """Close the bars of stages that were not finished."""
        for bar in self._bars.values():
            bar.close()
        self._bars.clear()

"""`generate`: from a sentence to a CT volume, its preview and its metadata."""

import argparse
import contextlib
import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gct_jax import __version__
from gct_jax.commands.argument_types import count, seed_list, seed_number, weight
from gct_jax.commands.prompt_table import Request, read_prompt_table
from gct_jax.errors import InputError
from gct_jax.runtime.files import replace_files_when_done
from gct_jax.runtime.stopping import check, deferred

if TYPE_CHECKING:
    from gct_jax.model_folder import Model
    from gct_jax.sampling.cascade import Generated, Settings
    from gct_jax.text import TokenizedText

FILES = ("volume.nii.gz", "preview.png", "metadata.json")
LONGEST_NOTE = 300  # characters; metadata.json has all of them
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
        from gct_jax.model_folder import demo_folder, load_model
        from gct_jax.runtime.numerics import prepare_jax
        from gct_jax.sampling import cascade  # noqa: F401 - loads what is needed later

    prepare_jax("gct")
    model = load_model(arguments.model or demo_folder())
    settings, asked = read_settings(model, arguments)
    texts = [encode_prompt(model, request.prompt) for request in requests]
    if settings.slices != asked:
        note(f"{asked} slices are not possible with this model; making {settings.slices}")
    trained = model.config.volume.slices
    if settings.slices > trained:
        note(f"{settings.slices} slices are more than the {trained} the model was trained on")
    for text in dict.fromkeys(text.truncated_text for text in texts):
        if text:
            shown = text if len(text) <= LONGEST_NOTE else f"{text[:LONGEST_NOTE]}..."
            note(f"the prompt is too long; not read: '{shown}'")
    for words in dict.fromkeys(text.unknown for text in texts):
        if words:
            note(f"the model's vocabulary does not know: {', '.join(map(repr, words))}")
    room = min(arguments.batch, len(requests))
    for first in range(0, len(requests), room):
        rows = slice(first, first + room)
        generate_batch(model, requests[rows], texts[rows], settings, asked, room)


def note(message: str) -> None:
    """Tell the user something that is not an error."""
    print(f"gct: note: {message}", file=sys.stderr)


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


def read_settings(model: "Model", arguments: argparse.Namespace) -> tuple["Settings", int]:
    """The model's defaults with the user's options in their place, and the slice count asked for.

    Raises:
      GctError: the model cannot make such a volume.
    """
    from gct_jax.sampling.cascade import (
        best_dtype,
        choose_settings,
        fitting_slices,
        require_generator,
    )

    require_generator(model.config, superres=not arguments.no_superres)
    asked = arguments.slices or model.config.volume.slices
    settings = choose_settings(
        model.config,
        slices=fitting_slices(model.config, asked),
        steps=arguments.steps,
        temperature=arguments.temperature,
        guidance=arguments.guidance,
        superres=not arguments.no_superres,
        superres_steps=arguments.sr_steps,
        dtype=best_dtype() if arguments.dtype == "auto" else arguments.dtype,
    )
    return settings, asked


def encode_prompt(model: "Model", prompt: str) -> "TokenizedText":
    """Token ids of a prompt, as many as the model reads.

    Raises:
      InputError: nothing of the prompt can be read.
    """
    assert model.tokenizer and model.config.t5  # as require_generator has found
    return model.tokenizer.encode(prompt, model.config.t5.max_length)


def generate_batch(
    model: "Model",
    requests: list[Request],
    texts: list["TokenizedText"],
    settings: "Settings",
    asked: int,
    room: int,
) -> None:
    """Sample volumes together and write the three files of each, all of them or none."""
    import jax

    from gct_jax.random_keys import GENERATOR
    from gct_jax.sampling.cascade import generate_volumes

    start = time.perf_counter()
    with contextlib.ExitStack() as unfinished:
        # Folders first: one that cannot be written to is found out before the long part.
        writers = []
        for request in requests:
            writer = unfinished.enter_context(contextlib.ExitStack())
            folder = writer.enter_context(replace_files_when_done(request.folder, FILES))
            writers.append((writer, folder))
        with progress_bars() as on_progress:
            volumes = generate_volumes(
                model,
                [text.ids for text in texts],
                [request.seed for request in requests],
                settings,
                on_progress,
                room=room,
                stepwise=jax.default_backend() == "cpu",
            )
        sampled = time.perf_counter() - start
        for request, text, made, (writer, folder) in zip(
            requests, texts, volumes, writers, strict=True
        ):
            metadata = {
                "prompt": request.prompt,
                "prompt_not_read": " ".join([*text.unknown, text.truncated_text]).strip(),
                "prompt_unknown": text.unknown,
                "seed": request.seed,
                **settings._asdict(),
                "slices_asked": asked,
                "batch": len(requests),
                "model": {"name": model.config.name, "sha256": model.sha256},
                "device": device_name(),
                "random_generator": GENERATOR,
                "versions": versions(),
            }
            write_volume_files(folder, made, metadata, sampled)
            writer.close()  # moves the files to where they belong
            size = " x ".join(map(str, made.volume.shape))
            spacing = " x ".join(f"{mm:.3g}" for mm in made.spacing_mm)
            path = request.folder / "volume.nii.gz"
            print(f"{path}: {size} voxels of {spacing} mm, seed {request.seed}")


def write_volume_files(
    folder: Path, made: "Generated", metadata: dict[str, Any], sampled: float
) -> None:
    """The three files of a volume.

    metadata: what is known but of the volume itself. sampled: seconds that its batch took.
    """
    from gct_jax.volumes.intensity import from_unit
    from gct_jax.volumes.nifti import write_volume
    from gct_jax.volumes.preview import save_preview

    volume_hu = from_unit(made.volume)
    start = time.perf_counter()
    write_volume(folder / "volume.nii.gz", volume_hu, made.spacing_mm)
    save_preview(folder / "preview.png", volume_hu, made.spacing_mm, metadata["prompt"])
    writing = time.perf_counter() - start
    metadata |= {
        "shape": volume_hu.shape,
        "axes": "depth (feet to head), height (front to back), width (right to left)",
        "spacing_mm": made.spacing_mm,
        "seconds": {
            **made.seconds,
            "write": round(writing, 3),
            "total": round(sampled + writing, 3),
        },
    }
    (folder / "metadata.json").write_text(
        json.dumps(metadata, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


@contextlib.contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr for every stage that reports its progress."""
    from tqdm import tqdm

    units = {"tokens": "step", "superres": "slice"}
    bars: dict[str, tqdm] = {}

    def on_progress(stage: str, done: int, total: int) -> None:
        check()
        if stage not in bars:
            bars[stage] = tqdm(desc=f"{stage:8}", total=total, unit=units[stage])
        bars[stage].update(done - bars[stage].n)
        if done == total:
            bars[stage].close()

    try:
        yield on_progress
    finally:
        for bar in bars.values():
            bar.close()


def device_name() -> str:
    """Platform and kind of the device that computes."""
    import jax

    device = jax.devices()[0]
    return f"{device.platform}: {device.device_kind}"


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    packages = ("jax", "jaxlib", "flax", "numpy")
    return {
        "gct_jax": __version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }

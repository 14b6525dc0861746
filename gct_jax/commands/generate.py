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
from gct_jax.commands.argument_types import count, seed_number, weight
from gct_jax.commands.prompt_table import Request, read_prompt_table
from gct_jax.errors import InputError
from gct_jax.files import replace_files_when_done

if TYPE_CHECKING:
    from gct_jax.model_folder import Model
    from gct_jax.sampling.cascade import Settings
    from gct_jax.text import TokenizedText

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
    parser.add_argument("--seed", type=seed_number, default=0, help="random seed (0)")
    parser.add_argument("--guidance", type=weight, help="how strictly the text is followed; 1: off")
    parser.add_argument("--steps", type=count, help="token decoding steps")
    parser.add_argument("--sr-steps", type=count, help="diffusion steps of the super-resolution")
    parser.add_argument(
        "--no-superres", action="store_true", help="stop at the low-resolution volume"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check everything, then sample one volume after the other.

    Raises:
      GctError: bad input; nothing was written unless earlier rows of `--prompts` were finished.
    """
    requests = read_requests(arguments)

    from gct_jax.compilation_cache import enable_compilation_cache
    from gct_jax.model_folder import demo_folder, load_model

    enable_compilation_cache()
    model = load_model(arguments.model or demo_folder())
    settings, asked = choose_settings(model, arguments)
    texts = [encode_prompt(model, request.prompt) for request in requests]
    if settings.slices != asked:
        note(f"{asked} slices are not possible with this model; making {settings.slices}")
    trained = model.config.volume.slices
    if settings.slices > trained:
        note(f"{settings.slices} slices are more than the {trained} the model was trained on")
    for request, text in zip(requests, texts, strict=True):
        if text.truncated_text:
            note(f"the prompt is too long; not read: '{text.truncated_text}'")
        generate_one(model, request, text, settings._replace(seed=request.seed), asked)
    return 0


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
    if arguments.prompt is not None:
        return [Request(arguments.prompt, arguments.seed, arguments.out)]
    return read_prompt_table(arguments.prompts, arguments.seed, arguments.out)


def choose_settings(model: "Model", arguments: argparse.Namespace) -> tuple["Settings", int]:
    """The model's defaults with the user's options in their place, and the slice count asked for.

    Raises:
      GctError: the model cannot make such a volume.
    """
    from gct_jax.sampling.cascade import Settings, fitting_slices, require_generator

    require_generator(model.config, superres=not arguments.no_superres)
    defaults = model.config.sampling
    asked = arguments.slices or model.config.volume.slices
    settings = Settings(
        seed=arguments.seed,
        slices=fitting_slices(model.config, asked),
        steps=arguments.steps or defaults.steps,
        temperature=defaults.temperature,
        guidance=defaults.guidance if arguments.guidance is None else arguments.guidance,
        superres=not arguments.no_superres,
        superres_steps=arguments.sr_steps or defaults.superres_steps,
        superres_guidance=defaults.superres_guidance,
        superres_solver=defaults.superres_solver,
    )
    return settings, asked


def encode_prompt(model: "Model", prompt: str) -> "TokenizedText":
    """Token ids of a prompt, as many as the model reads.

    Raises:
      InputError: the prompt is empty.
    """
    assert model.tokenizer and model.config.t5  # as require_generator has found
    return model.tokenizer.encode(prompt, model.config.t5.max_length)


def generate_one(
    model: "Model", request: Request, text: "TokenizedText", settings: "Settings", asked: int
) -> None:
    """Sample one volume and write its three files, all of them or none."""
    from gct_jax.sampling.cascade import generate_volume
    from gct_jax.volumes.intensity import from_unit
    from gct_jax.volumes.nifti import write_volume
    from gct_jax.volumes.preview import save_preview

    start = time.perf_counter()
    with replace_files_when_done(request.folder) as folder:
        with progress_bars() as on_progress:
            made = generate_volume(model, text.ids, settings, on_progress)
        volume_hu = from_unit(made.volume)
        writing = time.perf_counter()
        write_volume(folder / "volume.nii.gz", volume_hu, made.spacing_mm)
        save_preview(folder / "preview.png", volume_hu, made.spacing_mm, request.prompt)
        now = time.perf_counter()
        metadata = {
            "prompt": request.prompt,
            "prompt_not_read": text.truncated_text,
            **settings._asdict(),
            "slices_asked": asked,
            "shape": volume_hu.shape,
            "axes": "depth (feet to head), height (front to back), width (right to left)",
            "spacing_mm": made.spacing_mm,
            "model": {"name": model.config.name, "sha256": model.sha256},
            "device": device_name(),
            "versions": versions(),
            "seconds": {
                **made.seconds,
                "write": round(now - writing, 3),
                "total": round(now - start, 3),
            },
        }
        (folder / "metadata.json").write_text(
            json.dumps(metadata, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    size = " x ".join(map(str, volume_hu.shape))
    spacing = " x ".join(f"{mm:.3g}" for mm in made.spacing_mm)
    print(f"{request.folder / 'volume.nii.gz'}: {size} voxels of {spacing} mm, seed {request.seed}")


@contextlib.contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr for every stage that reports its progress."""
    from tqdm import tqdm

    units = {"tokens": "step", "superres": "slice"}
    bars: dict[str, tqdm] = {}

    def on_progress(stage: str, done: int, total: int) -> None:
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

"""Prompts to CTs: what the command line and Python call.

The random key of a volume comes from its seed alone. The same prompt, seed, model and options give
the same volume on the same kind of device, whatever is generated beside it.
"""

import dataclasses
import importlib.metadata
import platform
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from gct_jax import __version__
from gct_jax.components import require_component
from gct_jax.config import ModelConfig
from gct_jax.errors import InputError
from gct_jax.kernels.portions import best_dtype, watching_costs_nothing
from gct_jax.model_folder import Model
from gct_jax.notes import Note, warn
from gct_jax.random_keys import GENERATOR, require_seed
from gct_jax.sampling import cascade
from gct_jax.sampling.cascade import Generated, Progress
from gct_jax.sampling.settings import Settings, choose_settings
from gct_jax.text import TokenizedText, pad_ids
from gct_jax.volumes.ct import CT
from gct_jax.volumes.grid import Grid, Shape
from gct_jax.volumes.intensity import from_unit

LONGEST_NOTE = 300  # characters; the metadata have all of them
DTYPES = ("auto", "float32", "bfloat16")


def generate(
    model: Model,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    slices: int | None = None,
    steps: int | None = None,
    temperature: float | None = None,
    guidance: float | None = None,
    superres: bool = True,
    superres_steps: int | None = None,
    dtype: str = "auto",
    batch: int | None = None,
    on_progress: Progress | None = None,
    on_note: Note = warn,
) -> list[CT]:
    """Generate a CT for each prompt and seed.

    An option that is None takes the model's own value, `model.config.sampling`.

    Args:
      model: see `load_model`.
      prompts: free text, "AGE years old SEX: findings" as the model was trained.
      seeds: one for each prompt, 0 to 2**32 - 1.
      slices: number of axial slices; rounded up to a count that CT-ViT's patches tile.
      steps: token decoding steps.
      temperature: how freely tokens are drawn; 0: always the likeliest.
      guidance: how strictly the text is followed; 1: off.
      superres: False stops at the low-resolution volume.
      superres_steps: diffusion steps of the super-resolution.
      dtype: of the computation, "float32", "bfloat16", or "auto": what suits the device.
      batch: volumes sampled at a time, None: all; no volume depends on it.
      on_progress: called with a stage ("tokens", "superres"), the finished steps or slices, and
        all of them.
      on_note: called with each sentence on what was not done as asked, before sampling starts; by
        default it is a Python warning.

    Returns:
      A CT per prompt, with `token_ids`; `metadata` holds prompt, seed, settings, model, device,
      versions and seconds.

    Raises:
      InputError: a prompt, seed or option that cannot be used.
      ConfigError: an option outside its range.
      ModelFolderError: the model lacks a component that generation needs.
    """
    batches = generate_batches(
        model,
        prompts,
        seeds=seeds,
        slices=slices,
        steps=steps,
        temperature=temperature,
        guidance=guidance,
        superres=superres,
        superres_steps=superres_steps,
        dtype=dtype,
        batch=batch,
        on_progress=on_progress,
        on_note=on_note,
    )
    return [ct for cts in batches for ct in cts]


def generate_batches(
    model: Model,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    dtype: str = "auto",
    batch: int | None = None,
    on_progress: Progress | None = None,
    on_note: Note = warn,
    slices: int | None = None,
    **options: Any,
) -> Iterator[list[CT]]:
    """`generate`, `batch` CTs at a time, so that finished ones can be kept; all input is checked
    before this returns."""
    require_type("model", model, Model)
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        raise InputError(f"prompts must be a list of texts, not {prompts!r}")
    for prompt in prompts:
        require_type("prompt", prompt, str)
    if not isinstance(seeds, Sequence):
        raise InputError(f"seeds must be a list with a seed for each prompt, not {seeds!r}")
    for name, count in (("batch", batch), ("slices", slices)):
        if count is not None:
            require_type(name, count, int)
    if len(prompts) != len(seeds):
        raise InputError(f"{len(prompts)} prompts and {len(seeds)} seeds; give a seed per prompt")
    if not prompts:
        raise InputError("no prompts: nothing to generate")
    if batch is not None and batch < 1:
        raise InputError(f"batch = {batch}; it must be at least 1")
    for seed in seeds:
        require_seed(seed)
    settings, asked = _settings(model.config, slices, dtype, options)
    texts = [read_prompt(model, prompt) for prompt in prompts]
    for note in _notes(model.config, settings, asked, texts):
        on_note(note)
    room = min(batch or len(prompts), len(prompts))
    requests = [_Request(*row) for row in zip(prompts, seeds, texts, strict=True)]
    return _batches(model, requests, settings, asked, room, on_progress)


def require_type(name: str, value: object, wanted: type) -> None:
    """Raise InputError unless `value` is of the type; True and False are no numbers."""
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        shown = repr(value) if isinstance(value, str | int | float) else f"a {type(value).__name__}"
        raise InputError(f"{name} must be of type {wanted.__name__}, not {shown}")


class _Request(NamedTuple):
    prompt: str
    seed: int
    text: TokenizedText


def _settings(
    config: ModelConfig, slices: int | None, dtype: str, options: dict[str, Any]
) -> tuple[Settings, int]:
    """The model's settings with the user's in their place, and the slice count asked for."""
    cascade.require_generator(config, options.get("superres", True))
    asked = config.volume.slices if slices is None else slices
    settings = choose_settings(
        config,
        slices=cascade.fitting_slices(config, asked),
        dtype=computation_dtype(dtype),
        **options,
    )
    return settings, asked


def computation_dtype(dtype: str) -> str:
    """The type to compute in: "auto" is what suits the device.

    Raises:
      InputError: an unknown type.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype = {dtype!r} is none of {', '.join(DTYPES)}")
    return best_dtype() if dtype == "auto" else dtype


def read_prompt(model: Model, prompt: str) -> TokenizedText:
    """Token ids of a prompt, as many as the model reads, and what of it was not read.

    Raises:
      InputError: nothing of the prompt can be read.
      ModelFolderError: the model has no text encoder.
    """
    require_type("model", model, Model)
    require_type("prompt", prompt, str)
    require_component(model.config, "t5")
    assert model.tokenizer and model.config.t5  # as load_model sees to
    return model.tokenizer.encode(prompt, model.config.t5.max_length)


def text_ids(model: Model, prompts: Sequence[str]) -> np.ndarray:
    """Token ids of prompts as the text encoder takes them: int32 [prompts, length], 0 where padded.

    Raises:
      InputError: nothing of a prompt can be read.
      ModelFolderError: the model has no text encoder.
    """
    rows = [read_prompt(model, prompt).ids for prompt in prompts]
    assert model.config.t5 is not None  # read_prompt has looked
    return pad_ids(rows, model.config.t5.max_length)


def _notes(
    config: ModelConfig, settings: Settings, asked: int, texts: Sequence[TokenizedText]
) -> Iterator[str]:
    if settings.slices != asked:
        yield f"{asked} slices are not possible with this model; making {settings.slices}"
    if settings.slices > config.volume.slices:
        yield (
            f"{settings.slices} slices are more than the {config.volume.slices} the model was "
            "trained on"
        )
    yield from prompt_notes(texts)


def prompt_notes(texts: Sequence[TokenizedText]) -> Iterator[str]:
    """What of some prompts the model does not read."""
    for text in dict.fromkeys(text.truncated_text for text in texts):
        if text:
            shown = text if len(text) <= LONGEST_NOTE else f"{text[:LONGEST_NOTE]}..."
            yield f"the prompt is too long; not read: '{shown}'"
    for words in dict.fromkeys(text.unknown for text in texts):
        if words:
            yield f"the model's vocabulary does not know: {', '.join(map(repr, words))}"


def _batches(
    model: Model,
    requests: list[_Request],
    settings: Settings,
    asked: int,
    room: int,
    on_progress: Progress | None,
) -> Iterator[list[CT]]:
    for first in range(0, len(requests), room):
        chosen = requests[first : first + room]
        start = time.perf_counter()
        made = cascade.generate_volumes(
            model,
            [request.text.ids for request in chosen],
            [request.seed for request in chosen],
            settings,
            on_progress or (lambda *_: None),
            room=room,
            stepwise=watching_costs_nothing(),
        )
        total = round(time.perf_counter() - start, 3)
        common = {
            **dataclasses.asdict(settings),
            "slices_asked": asked,
            "batch": len(chosen),
            "model": {"name": model.config.name, "sha256": model.sha256},
            "device": device_name(),
            "random_generator": GENERATOR,
            "versions": versions(),
        }
        yield [
            _generated_ct(request, one, {**common, "seconds": {**one.seconds, "total": total}})
            for request, one in zip(chosen, made, strict=True)
        ]


def _generated_ct(request: _Request, made: Generated, common: dict[str, Any]) -> CT:
    unread = [*request.text.unknown, request.text.truncated_text]
    metadata = {
        "prompt": request.prompt,
        "prompt_not_read": " ".join(unread).strip(),
        "prompt_unknown": request.text.unknown,
        "seed": request.seed,
        **common,
    }
    shape: Shape = made.volume.shape  # type: ignore[assignment]
    grid = Grid.centred(shape, made.spacing_mm)
    return CT(from_unit(made.volume), grid.affine, made.token_ids, metadata)


def device_name() -> str:
    """Platform and kind of the device that computes."""
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

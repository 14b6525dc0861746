"""Volumes for the demo evaluation: generated from prompts and kept on disk, rendered, rebuilt."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from data_pipelines.phantom.case import Case
from data_pipelines.phantom.render import render
from gct_jax.components import build_component
from gct_jax.model_folder import Model
from gct_jax.random_keys import random_key
from gct_jax.runtime.files import replace_when_done
from gct_jax.sampling.cascade import (
    Settings,
    embed_text,
    sample_low_resolution,
    super_resolve,
)
from gct_jax.volumes.grid import Grid
from gct_jax.volumes.intensity import to_int16_hu, to_unit

BATCH = 8


class Generator:
    """Low-resolution volumes of prompts, the same as `generate --no-superres` makes.

    Each volume is stored under a name that stands for model, settings, seed and prompt, so an
    interrupted evaluation continues where it stopped.
    """

    def __init__(self, model: Model, settings: Settings, folder: Path):
        self.model, self.settings, self.folder = model, settings, folder

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int], title: str) -> np.ndarray:
        """Int16 HU [len(prompts), depth, height, width]."""
        paths = [self._path(p, s) for p, s in zip(prompts, seeds, strict=True)]
        missing = [i for i, path in enumerate(paths) if not path.exists()]
        with tqdm(total=len(paths), initial=len(paths) - len(missing), desc=title) as bar:
            for first in range(0, len(missing), BATCH):
                rows = missing[first : first + BATCH]
                volumes = self._sample([prompts[i] for i in rows], [seeds[i] for i in rows])
                for i, volume in zip(rows, volumes, strict=True):
                    with replace_when_done(paths[i]) as path:
                        np.savez_compressed(path, volume_hu=volume, prompt=prompts[i])
                bar.update(len(rows))
        return np.stack([np.load(path)["volume_hu"] for path in paths])

    def _path(self, prompt: str, seed: int) -> Path:
        identity = [self.model.sha256, dataclasses.asdict(self.settings), seed, prompt]
        digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        return self.folder / f"{digest[:20]}.npz"

    def _sample(self, prompts: list[str], seeds: list[int]) -> np.ndarray:
        config, tokenizer = self.model.config, self.model.tokenizer
        assert config.t5 and tokenizer
        low = sample_low_resolution(
            self.model,
            [tokenizer.encode(prompt, config.t5.max_length).ids for prompt in prompts],
            [random_key(seed) for seed in seeds],
            self.settings,
            lambda *_: None,
            {},
            room=BATCH,
        )
        return to_int16_hu(low.volumes[..., 0])


def render_cases(cases: Sequence[Case], grid: Grid, title: str) -> np.ndarray:
    """Int16 HU [len(cases), depth, height, width], clipped to the models' range."""
    return np.stack(
        [to_int16_hu(to_unit(render(c.anatomy, grid))) for c in tqdm(cases, desc=title)]
    )


def rebuild(model: Model, volumes_hu: np.ndarray, title: str) -> np.ndarray:
    """What CT-ViT makes of volumes, int16 HU of the same shape."""
    ctvit = build_component(model.config, "ctvit")
    run = jax.jit(lambda variables, volume: ctvit.apply(variables, volume).reconstruction)
    variables = model.variables("ctvit")
    rebuilt = [
        run(variables, to_unit(v)[None, ..., None])[0, ..., 0] for v in tqdm(volumes_hu, title)
    ]
    return np.stack([to_int16_hu(volume) for volume in rebuilt])


def enlarge(
    model: Model, slices_hu: np.ndarray, prompt: str, seed: int, settings: Settings
) -> np.ndarray:
    """Super-resolve slices [n, h, w] of one case, int16 HU [n, H, W]."""
    assert model.config.t5 and model.tokenizer
    text_ids = model.tokenizer.encode_batch([prompt], model.config.t5.max_length)
    text = embed_text(model.variables("t5"), text_ids, config=model.config)
    low = to_unit(slices_hu)[None, ..., None]
    mask, keys = jnp.asarray(text_ids > 0), [random_key(seed)]
    return to_int16_hu(super_resolve(model, low, text, mask, keys, settings)[0, ..., 0])

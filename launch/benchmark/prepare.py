"""Weights, inputs and operation counts of the chosen cases, written once for both sides.

Weights are random and go by the names of the PyTorch reference, so that a peer loads them strictly
and ours come back through the same conversion that published files take.
"""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree
from safetensors.numpy import save_file

from gct_jax.components import abstract_variables
from gct_jax.config import ModelConfig
from gct_jax.flops import count_flops
from gct_jax.interop.generatect.files import LAYOUTS
from gct_jax.sampling.cascade import model_token_grid
from launch.benchmark.cases import TEXT_TOKENS, Case
from launch.benchmark.ours import abstract_call

SEED = 0


def prepare(folder: Path, model: ModelConfig, cases: list[Case]) -> None:
    """Write `<part>.safetensors`, `<case>.npz` and `flops.json`."""
    for part in sorted({case.part for case in cases if case.part in LAYOUTS}):
        layout = LAYOUTS[part](getattr(model, part))
        state = layout.to_reference(random_variables(abstract_variables(model, part)))
        tensors = {name: np.ascontiguousarray(value) for name, value in state.items()}
        save_file(tensors, weight_file(folder, part))
    counts = {}
    for case in cases:
        if case.part in LAYOUTS:
            arrays = random_inputs(model, case)
            np.savez(input_file(folder, case), **arrays)  # type: ignore[arg-type]
            counts[case.name] = count_flops(*abstract_call(model, case, arrays))._asdict()
    (folder / "flops.json").write_text(json.dumps(counts))


def weight_file(folder: Path, part: str) -> Path:
    """Where a network's weights lie."""
    return folder / f"{part}.safetensors"


def input_file(folder: Path, case: Case) -> Path:
    """Where a case's inputs lie."""
    return folder / f"{case.name}.npz"


def random_variables(tree: PyTree) -> PyTree:
    """Weights with which every part of a network matters: kernels keep the size of what they are
    given, gains are about 1, biases about 0."""
    draw = np.random.default_rng(SEED)
    return jax.tree_util.tree_map_with_path(functools.partial(_random_weight, draw), tree)


def _random_weight(draw: np.random.Generator, path: tuple, leaf: Any) -> np.ndarray:
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    noise = draw.standard_normal(leaf.shape, dtype=np.float32)
    if name.startswith("codebook"):
        if noise.ndim == 1:
            return np.ones(leaf.shape, np.float32)
        return noise / np.linalg.norm(noise, axis=-1, keepdims=True)
    if name.endswith(("embedding", "position")):
        return 0.5 * noise
    if noise.ndim == 1:
        return 0.1 * noise + (0 if name.endswith("bias") else 1)
    return noise / np.sqrt(np.float32(np.prod(leaf.shape[:-1])))


def input_shapes(model: ModelConfig, case: Case) -> dict[str, tuple[int, ...]]:
    """Shapes of a case's inputs, batch 1, channels last."""
    assert model.ctvit and model.maskgit and model.superres and model.diffusion
    ctvit, volume = model.ctvit, model.volume
    _, height, width = model_token_grid(model, 1)
    if case.part == "maskgit":
        shapes = {
            "ids": (1, case.frames, height, width),
            "context": (1, model.superres.max_text_len, model.maskgit.context_dim or 0),
            "context_mask": (1, model.superres.max_text_len),
        }
        return shapes | ({"hidden": shapes["ids"]} if case.task == "train" else {})
    if case.part == "ctvit":
        if case.task == "decode":
            return {"ids": (1, *model_token_grid(model, volume.slices))}
        return {"volume": (1, volume.slices, volume.image_size, volume.image_size, ctvit.channels)}
    if case.part == "superres":
        image = (1, model.diffusion.image_size, model.diffusion.image_size, model.superres.channels)
        length = model.superres.max_text_len
        shapes = {
            "x": image,
            "log_snr": (1,),
            "low_res": image,
            "low_res_log_snr": (1,),
            "text": (1, length, model.superres.text_embed_dim or 0),
            "text_mask": (1, length),
        }
        return shapes | ({"target": image} if case.task == "train" else {})
    return {}


def random_inputs(model: ModelConfig, case: Case) -> dict[str, np.ndarray]:
    """Inputs by name; see `input_shapes`."""
    assert model.maskgit and model.ctvit
    draw = np.random.default_rng(SEED + 1)
    codes = model.maskgit.num_tokens if case.part == "maskgit" else model.ctvit.codebook_size
    arrays: dict[str, np.ndarray] = {}
    for name, shape in input_shapes(model, case).items():
        if name == "ids":
            arrays[name] = draw.integers(0, codes, shape).astype(np.int32)
        elif name == "hidden":
            arrays[name] = draw.random(shape) < 0.6
        elif name.endswith("_mask"):
            arrays[name] = np.arange(shape[1])[None] < TEXT_TOKENS
        elif name == "volume":
            arrays[name] = draw.uniform(-1, 1, shape).astype(np.float32)
        else:
            arrays[name] = draw.standard_normal(shape, dtype=np.float32)
    return arrays

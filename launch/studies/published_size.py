"""Convert files of exactly the published structure and size, and say what it costs.

    python -m launch.studies.published_size --folder /tmp/published --generate

writes randomly filled files (2 GB: a CT-ViT with discriminator and VGG-16, a MaskGIT transformer,
a super-resolution trainer's checkpoint with optimiser and averaged weights, a T5X checkpoint),
converts them with the command line and prints seconds and peak memory of every step.
"""

import argparse
import dataclasses
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from gct_jax.components import abstract_variables
from gct_jax.config import CTViTConfig, ModelConfig, UNetConfig
from gct_jax.interop.generatect.ctvit import REFERENCE_OPTIONS, discriminator_layout
from gct_jax.interop.generatect.files import LAYOUTS
from gct_jax.interop.t5x import t5_to_t5x
from gct_jax.interop.torch_files import write_torch
from gct_jax.runtime.exit_codes import exit_code
from gct_jax.text import train_vocabulary

DISCRIMINATOR_WIDTH = 16
VGG_FEATURES = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
VGG_CLASSIFIER = {0: (4096, 512 * 7 * 7), 3: (4096, 4096)}
PROMPT = "58 years old female: Large left pleural effusion."
SENTENCES = [f"{PROMPT} Nodule of {i} mm in the right upper lobe. Cardiomegaly." for i in range(99)]


def main(arguments: list[str] | None = None) -> int:
    """Write, convert and, if asked, generate from the files."""
    parser = argparse.ArgumentParser(prog="launch.studies.published_size", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--generate", action="store_true", help="3 slices in a few steps as well")
    options = parser.parse_args(arguments)

    def command() -> None:
        write_and_convert(options.folder, options.generate)

    return exit_code("launch.studies.published_size", command)


def write_and_convert(folder: Path, generates: bool) -> None:
    """Write the files, `convert` and `export` them, `generate` if asked; print what each takes."""
    start = time.perf_counter()
    write_files(folder)
    print(f"written in {time.perf_counter() - start:.0f} s", flush=True)
    files = {"ctvit": "ctvit.pt", "transformer": "transformer.pt", "superres": "superres.pt"}
    files |= {"t5": "t5x", "tokenizer": "spiece.model"}
    paths = [text for key, name in files.items() for text in (f"--{key}", str(folder / name))]
    model = str(folder / "model")
    measure("convert", "generatect", *paths, "--out", model)
    measure("export", "generatect", "--model", model, "--out", str(folder / "back"))
    if generates:
        few = ("--slices", "3", "--steps", "2", "--sr-steps", "1")
        measure("generate", PROMPT, "--model", model, *few, "--out", str(folder / "generated"))


def write_files(folder: Path) -> None:
    """The four weight files and a tokenizer."""
    config = ModelConfig(
        ctvit=dataclasses.replace(CTViTConfig(), **REFERENCE_OPTIONS),
        superres=UNetConfig(cond_dim=64),
    )
    ctvit, maskgit, unet = (
        LAYOUTS[component](component_config).to_reference(
            random_tree(abstract_variables(config, component))
        )
        for component, component_config in (
            ("ctvit", config.ctvit),
            ("maskgit", config.maskgit),
            ("superres", config.superres),
        )
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_torch(folder / "ctvit.pt", ctvit | adversaries())
    prefixed = {f"ctvit.{k}": x for k, x in ctvit.items()}
    prefixed |= {f"maskgit.{k}": x for k, x in maskgit.items()}
    write_torch(folder / "transformer.pt", prefixed)
    write_torch(folder / "superres.pt", trainer_checkpoint(unet))
    (folder / "t5x").mkdir(exist_ok=True)
    t5_to_t5x(random_tree(abstract_variables(config, "t5")), folder / "t5x")
    train_vocabulary(SENTENCES, folder / "spiece.model", 200)


def adversaries() -> dict[str, np.ndarray]:
    """Discriminator and VGG-16 without its last layer, as they lie beside a CT-ViT."""
    layout = discriminator_layout(DISCRIMINATOR_WIDTH)
    shapes = {
        "params": {
            name.removeprefix("params."): jax.ShapeDtypeStruct(shape, np.float32)
            for name, shape in layout.shapes.items()
        }
    }
    state = layout.to_reference(random_tree(shapes))
    tensors = {f"discr.{name}": value for name, value in state.items()}
    channels = 3
    index = 0
    for width in VGG_FEATURES:
        if width:
            tensors[f"vgg.features.{index}.weight"] = random_array((width, channels, 3, 3))
            tensors[f"vgg.features.{index}.bias"] = random_array((width,))
            channels = width
        index += 2 if width else 1  # a convolution is followed by its activation
    for i, shape in VGG_CLASSIFIER.items():
        tensors[f"vgg.classifier.{i}.weight"] = random_array(shape)
        tensors[f"vgg.classifier.{i}.bias"] = random_array(shape[:1])
    return tensors


def trainer_checkpoint(unet: dict[str, np.ndarray]) -> dict[str, Any]:
    """What the super-resolution trainer saves."""
    empty = {"dummy_parameter": np.zeros(1, np.float32)}
    nets = ((0, empty), (1, unet))
    ema: dict[str, np.ndarray] = {}
    for i, net in nets:
        ema |= {f"{i}.initted": np.ones(1, np.float32), f"{i}.step": np.ones(1, np.int64)}
        for copy in ("online_model", "ema_model"):
            ema |= {f"{i}.{copy}.{name}": value for name, value in net.items()}
    moments = {
        i: {"step": np.array(9, np.float32), "exp_avg": value, "exp_avg_sq": value}
        for i, value in enumerate(unet.values())
    }
    groups = [{"lr": 5e-4, "betas": (0.9, 0.99), "params": list(moments)}]
    return {
        "model": {f"unets.{i}.{name}": x for i, net in nets for name, x in net.items()},
        "steps": np.array([0, 9]),
        "optim0": {"state": {}, "param_groups": groups},
        "optim1": {"state": moments, "param_groups": groups},
        "ema": ema,
    }


def random_tree(tree: PyTree) -> PyTree:
    """A tree of shapes filled with small random numbers."""
    return jax.tree.map(lambda leaf: random_array(leaf.shape), tree)


def random_array(shape: tuple[int, ...]) -> np.ndarray:
    """Normal noise of deviation 0.02 that repeats after a few thousand numbers, to be quick."""
    noise = np.random.default_rng(0).normal(0.0, 0.02, 4099).astype(np.float32)
    return np.resize(noise, shape)


def measure(*arguments: str) -> None:
    """Run a command of gct_jax and print its seconds and the peak memory of all so far."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "gct_jax", *arguments], check=True)
    seconds = time.perf_counter() - start
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    peak = usage.ru_maxrss / 2**20
    cpu = usage.ru_utime + usage.ru_stime
    print(f"{arguments[0]}: {seconds:.0f} s; so far {cpu:.0f} s of CPU, peak {peak:.1f} GiB")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

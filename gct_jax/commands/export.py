"""`export`: a model folder's weights in the formats of other programs."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gct_jax.runtime.files import replace_files_when_done
from gct_jax.runtime.stopping import deferred

if TYPE_CHECKING:
    from gct_jax.model_folder import Model

FORMATS = {
    "generatect": "state dicts of the PyTorch system, .pt and .safetensors",
    "t5x": "the text encoder as a T5X checkpoint",
    "huggingface": "the text encoder as a Hugging Face T5 folder",
}


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser("export", help="a model folder's weights for other programs")
    formats = parser.add_subparsers(required=True, metavar="|".join(FORMATS), dest="format")
    for name, text in FORMATS.items():
        chosen = formats.add_parser(name, help=text, description=f"Writes {text}.")
        chosen.add_argument("--model", type=Path, help="model folder (the demo model)")
        chosen.add_argument("--out", type=Path, required=True, metavar="DIR")
        chosen.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Write the files, all or none.

    Raises:
      GctError: the folder is unusable, lacks the part asked for, or is of a kind that the other
        program cannot run.
    """
    with deferred():
        from gct_jax.model_folder import demo_folder, load_model
        from gct_jax.runtime.numerics import prepare_jax

    prepare_jax("gct")
    model = load_model(arguments.model or demo_folder())
    write = {"generatect": _generatect, "t5x": _t5x, "huggingface": _huggingface}
    with replace_files_when_done(arguments.out) as folder:
        write[arguments.format](model, folder)
        written = sorted(path.name for path in folder.iterdir())
    shown = written if len(written) < 9 else [*written[:3], f"... {len(written)} in all"]
    print(f"{arguments.out}: {', '.join(shown)}")


def _generatect(model: "Model", folder: Path) -> None:
    from gct_jax.interop.generatect.files import reference_document
    from gct_jax.interop.generatect.set_aside import plain_tensors, reference_files
    from gct_jax.interop.torch_files import have_torch, write_torch
    from gct_jax.interop.weight_files import write_safetensors

    for file in reference_files(model):
        write_safetensors(folder / f"{file.kind}.safetensors", plain_tensors(file))
        if have_torch():
            write_torch(folder / f"{file.kind}.pt", reference_document(file))
    if not have_torch():
        print("note: PyTorch is not installed, so no .pt files: pip install 'gct_jax[convert]'")


def _t5x(model: "Model", folder: Path) -> None:
    from gct_jax.interop.t5x import t5_to_t5x

    t5_to_t5x(model.variables("t5"), folder)


def _huggingface(model: "Model", folder: Path) -> None:
    from gct_jax.interop.huggingface import t5_to_huggingface

    variables = model.variables("t5")
    assert model.config.t5 and model.tokenizer  # a folder with weights of a t5 has both
    t5_to_huggingface(model.config.t5, variables, folder)
    (folder / "spiece.model").write_bytes(model.tokenizer.model_bytes)

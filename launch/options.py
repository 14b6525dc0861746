"""Options that `launch.train` and `launch.prepare` share."""

import argparse
import importlib.util
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gct_jax.errors import ConfigError

if TYPE_CHECKING:
    from gct_jax.training.config import TrainConfig
    from gct_jax.training.stages import Components


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """--config, --from, --allow-unfinished and field=value."""
    parser.add_argument("--config", required=True, metavar="FILE:NAME")
    add_network_options(parser)
    parser.add_argument("overrides", nargs="*", metavar="field=value")


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """--from and --allow-unfinished."""
    parser.add_argument(
        "--from",
        dest="networks",
        action="append",
        type=folder_option,
        default=[],
        metavar="FOLDER",
        help="training or model folder of an earlier stage; may be given several times",
    )
    parser.add_argument(
        "--allow-unfinished",
        action="store_true",
        help="take networks of a --from run that has not reached its last step",
    )


def folder_option(text: str) -> Any:
    """A folder of the command line, on a disk or in an object store."""
    from gct_jax.runtime.storage import folder

    try:
        return folder(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def chosen_components(options: argparse.Namespace) -> "Components":
    """The networks of --from, with the sizes of the folders that trained them. They need not belong
    together: what is made by them remembers by which, and training looks.

    Raises:
      GctError: none is named, or a folder is unusable.
    """
    from gct_jax.training.stages import join_components

    if not options.networks:
        raise ConfigError("name the folder of the networks with --from")
    return join_components(
        None,
        options.networks,
        allow_unfinished=options.allow_unfinished,
        accept_mismatch=True,
    )


def load_config(spec: str, overrides: list[str]) -> "TrainConfig":
    """TrainConfig from "FILE:NAME" (function NAME of a Python file) with fields overridden.

    Raises:
      ConfigError: no such file or function, or a bad override.
    """
    from gct_jax.config import override
    from gct_jax.notes import tell

    file, colon, name = spec.rpartition(":")
    if not colon:
        raise ConfigError(f"--config {spec} names no configuration; the form is {spec}:ctvit")
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"--config {spec}: no file {file!r}; the form is configs/demo.py:ctvit")
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if name.startswith("_") or not callable(getattr(module, name, None)):
        raise ConfigError(f"--config {spec}: {file} has no configuration {name!r}")
    config: TrainConfig = override(getattr(module, name)(), overrides, on_note=tell)
    return config


def prepare_command(options: argparse.Namespace) -> str:
    """The command that prepares what a call of `launch.train` trains on."""
    words = ["python", "-m", "launch.prepare", "--config", options.config]
    for folder in options.networks:
        words += ["--from", str(folder)]
    folders = [text for text in options.overrides if text.startswith("data.folder=")]
    words += ["--out", folders[-1].partition("=")[2] if folders else "FOLDER"]
    words += [text for text in options.overrides if text.startswith(("data.", "model."))]
    return shlex.join(word for word in words if not word.startswith("data.folder="))

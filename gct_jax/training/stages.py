"""The stages by name, and what a later stage takes from an earlier one."""

import dataclasses
import functools
import importlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax

from gct_jax.config import ModelConfig, SamplingConfig, from_dict, to_dict
from gct_jax.errors import ConfigError
from gct_jax.model_folder import load_model
from gct_jax.parts import CONFIG_FIELD, PARTS, has_part
from gct_jax.random_keys import random_key
from gct_jax.sharding import make_mesh, state_shardings
from gct_jax.training.checkpoint import Checkpoints
from gct_jax.training.config import TrainConfig
from gct_jax.training.loop import Stage, with_shardings


class Parts(NamedTuple):
    """Trained networks: part name ("ctvit", "maskgit", "t5", "superres") -> variables."""

    config: ModelConfig
    variables: dict[str, Any]
    tokenizer: bytes | None


def stage_module(config: TrainConfig) -> Any:
    """The module `gct_jax.training.<stage>`."""
    return importlib.import_module(f"gct_jax.training.{config.stage}")


def make_stage(config: TrainConfig) -> Stage:
    """The stage's pure functions with the configuration bound."""
    module = stage_module(config)
    return Stage(
        functools.partial(module.init_state, config),
        functools.partial(module.train_step, config),
        functools.partial(module.eval_step, config),
    )


def _trained(config: TrainConfig) -> ModelConfig:
    """The model without the defaults of its sampling, which may change during a run."""
    return dataclasses.replace(config.model, sampling=SamplingConfig())


def write_config(workdir: Path, config: TrainConfig) -> None:
    """Record the run's configuration in `workdir/config.json`.

    Raises:
      ConfigError: the folder holds a run of another stage or model.
    """
    path = workdir / "config.json"
    if path.exists():
        earlier = read_config(workdir)
        if (earlier.stage, _trained(earlier)) != (config.stage, _trained(config)):
            raise ConfigError(f"{workdir} holds a run of another model; choose another --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(to_dict(config), indent=1) + "\n")


def read_config(workdir: Path) -> TrainConfig:
    """The configuration recorded in a training folder.

    Raises:
      ConfigError: there is none, or it is damaged.
    """
    path = workdir / "config.json"
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    return from_dict(TrainConfig, values, str(path))


def load_parts(folder: Path) -> Parts:
    """Trained networks of a training folder (averaged weights of its newest checkpoint) or of a
    model folder.

    Raises:
      GctError: the folder is neither, or has no checkpoint yet.
    """
    if not (folder / "checkpoints").is_dir():
        model = load_model(folder)
        variables = {part: model.variables(part) for part in PARTS if has_part(model.config, part)}
        return Parts(
            model.config, variables, model.tokenizer.model_bytes if model.tokenizer else None
        )
    config = read_config(folder)
    abstract = jax.eval_shape(make_stage(config).init_state, random_key(0), {})
    mesh = make_mesh((1, 1, 1), jax.local_devices()[:1])
    with Checkpoints(folder / "checkpoints") as checkpoints:
        state = checkpoints.restore(with_shardings(abstract, state_shardings(abstract, mesh)))
    trained = jax.device_get(stage_module(config).trained_parts(config, state))
    tokenizer = folder / "tokenizer.model"
    return Parts(config.model, trained, tokenizer.read_bytes() if tokenizer.exists() else None)


def join_parts(config: ModelConfig, folders: list[Path]) -> Parts:
    """All networks of several folders; where two have the same part, the later one counts. A part's
    sizes come from the folder that trained it, everything else from `config`."""
    variables: dict[str, Any] = {}
    tokenizer = None
    for folder in folders:
        parts = load_parts(folder)
        sizes = {
            CONFIG_FIELD[part]: getattr(parts.config, CONFIG_FIELD[part])
            for part in parts.variables
        }
        config = dataclasses.replace(config, **sizes)
        variables |= parts.variables
        tokenizer = parts.tokenizer or tokenizer
    return Parts(config, variables, tokenizer)

"""The stages by name, and what a later stage takes from an earlier one."""

import dataclasses
import functools
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from gct_jax.components import present_components
from gct_jax.config import ModelConfig
from gct_jax.errors import ConfigError
from gct_jax.model_folder import load_model
from gct_jax.provenance import TOKENIZER, Provenance, bytes_identity, identity, require_fit
from gct_jax.random_keys import random_key
from gct_jax.runtime.storage import fetched
from gct_jax.sharding import make_mesh, state_shardings
from gct_jax.training.checkpoint import read_items
from gct_jax.training.config import TrainConfig
from gct_jax.training.loop import Stage, with_shardings
from gct_jax.training.run_folder import read_config, recorded_inputs


class Components(NamedTuple):
    """Trained networks: the variables of components by name, and which belong together."""

    config: ModelConfig
    variables: dict[str, PyTree]
    tokenizer: bytes | None
    provenance: Provenance = Provenance()


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


def load_components(folder: Any, allow_unfinished: bool = False) -> Components:
    """Trained networks of a training folder (averaged weights of its newest whole checkpoint) or of
    a model folder.

    Args:
      folder: a `Path` or what `gct_jax.runtime.storage.folder` gives; it is only read, and a run
        may be saving there.
      allow_unfinished: take a run that has not reached its last step as it is.

    Raises:
      GctError: the folder is neither, has no checkpoint yet, or its run is unfinished.
    """
    with fetched(folder) as local:
        if not (folder / "checkpoints").is_dir():
            model = load_model(local)
            variables = {name: model.variables(name) for name in present_components(model.config)}
            tokenizer = model.tokenizer.model_bytes if model.tokenizer else None
            return Components(model.config, variables, tokenizer, model.provenance)
        config = read_config(local)
        trained, step = _read_trained(folder / "checkpoints", config)
        if step < config.loop.steps and not allow_unfinished:
            raise ConfigError(
                f"{folder} is at step {step} of {config.loop.steps}; run its launch.train command "
                "again to finish it, or take it as it is with --allow-unfinished"
            )
        path = local / "tokenizer.model"
        tokenizer = path.read_bytes() if path.exists() else None
        provenance = _provenance(local, trained, tokenizer)
        return Components(config.model, trained, tokenizer, provenance)


def _read_trained(checkpoints: Any, config: TrainConfig) -> tuple[dict[str, Any], int]:
    module = stage_module(config)
    given: dict[str, Any] = {"vgg16": {}}  # which is trained against, never shipped
    abstract = jax.eval_shape(make_stage(config).init_state, random_key(0), given)
    mesh = make_mesh((1, 1, 1), jax.local_devices()[:1])
    placed = with_shardings(abstract, state_shardings(abstract, mesh))
    state = read_items(checkpoints, placed, module.shipped_items(config))
    return jax.device_get(module.trained_components(config, state)), int(state.step)


def _provenance(folder: Path, trained: dict[str, Any], tokenizer: bytes | None) -> Provenance:
    """Of what a run has trained: the hash of each network; what the run was given, and the networks
    that it trained together, belong to each."""
    identities = {component: identity(variables) for component, variables in trained.items()}
    if tokenizer is not None:
        identities[TOKENIZER] = bytes_identity(tokenizer)
    inputs = recorded_inputs(folder) | identities
    trained_with = {
        component: {name: value for name, value in inputs.items() if name != component}
        for component in trained
    }
    return Provenance(identities, trained_with)


def join_components(
    config: ModelConfig | None,
    folders: Sequence[Any],
    *,
    allow_unfinished: bool = False,
    accept_mismatch: bool = False,
) -> Components:
    """All networks of several folders; where two have the same component, the later one counts. A
    component's sizes come from the folder that trained it, everything else from `config`.

    Args:
      config: None takes that of the last folder.
      folders: training and model folders.
      allow_unfinished: of runs, see `load_components`.
      accept_mismatch: take networks that were not trained together.

    Raises:
      GctError: a folder is unusable, or two networks do not belong together.
    """
    loaded = [load_components(folder, allow_unfinished) for folder in folders]
    joined = Components(config or loaded[-1].config, {}, None)
    for components in loaded:
        sizes = {
            component: getattr(components.config, component) for component in components.variables
        }
        joined = Components(
            dataclasses.replace(joined.config, **sizes),
            joined.variables | components.variables,
            components.tokenizer or joined.tokenizer,
            joined.provenance.joined(components.provenance),
        )
    if not accept_mismatch:
        require_fit(joined.provenance, ", ".join(map(str, folders)))
    return joined

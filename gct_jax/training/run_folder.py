"""A run's folder: what the run is, what it was given, and how it ended.

    config.json       the configuration, replaced by rename when a start has been checked
    provenance.json   identities of the networks and the vocabulary that the run was given
    status.json       "running", "stopped", "finished", "diverged", "interrupted" (another process
                      was lost) or "failed"; at which step of how many, that of the last checkpoint
                      but for "diverged"; and how often the run diverged at which step
    run.lock          one run at a time
    checkpoints/  metrics.jsonl  tensorboard/  samples/  tokenizer.model  data/

A run that goes on is the same run: its configuration and its inputs are compared with those that
the folder records before anything is written.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gct_jax.config import from_dict, to_dict
from gct_jax.errors import ConfigError
from gct_jax.provenance import (
    SHOWN_DIGITS,
    TOKENIZER,
    Provenance,
    bytes_identity,
    read_provenance,
    write_provenance,
)
from gct_jax.runtime.files import replace_files_when_done, replace_when_done
from gct_jax.training.config import TrainConfig
from gct_jax.training.start import NEWEST, StartFrom

STATUS = "status.json"
FAILURES = 2  # at one step, after which a run goes back by itself
PLACES = ("data.folder", "data.root", "data.reports", "ctvit.vgg16")
# Fields that may differ when a run goes on: its length and rhythm, the devices and places, and what
# training does not look at. Everything else changes the state or the order of the data.
FREE_FIELDS = (
    "loop.steps",
    "loop.log_every",
    "loop.eval_every",
    "loop.sample_every",
    "loop.checkpoint_every",
    "loop.keep_checkpoints",
    "loop.mesh",
    "loop.micro_batches",
    "loop.resume_step",
    *PLACES,
    "remat",
    "model.name",
    "model.description",
    "model.sampling",
)
# What a stage is given and must stay the same; a text encoder that is trained on may differ.
INPUTS = {"ctvit": (), "t5": (), "maskgit": ("ctvit", "t5"), "superres": ("ctvit", "t5")}


def read_config(workdir: Path) -> TrainConfig:
    """The configuration recorded in a training folder.

    Raises:
      ConfigError: there is none, or it is damaged.
    """
    path = workdir / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    return from_dict(TrainConfig, values, str(path))


def run_fields(config: TrainConfig) -> dict[str, Any]:
    """Every field of a configuration by its dotted name, but for the places of files, which each
    host may have elsewhere."""
    fields = _flat(to_dict(config))
    return {name: value for name, value in fields.items() if name not in PLACES}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def run_inputs(config: TrainConfig, given: Provenance) -> dict[str, str]:
    """Identities of what this run computes with besides its own weights."""
    names = [*INPUTS[config.stage], *([] if config.stage == "ctvit" else [TOKENIZER])]
    if config.stage == "maskgit" and config.maskgit.train_text_encoder:
        names.remove("t5")
    return {name: given.identities[name] for name in names if name in given.identities}


def check_resume(
    workdir: Path, config: TrainConfig, inputs: Mapping[str, str], accept: bool = False
) -> None:
    """Compare a start in `workdir` with the run that the folder holds, if there is one.

    Changes that are allowed are told on stderr.

    Raises:
      ConfigError: a field or an input changed that must not, by name, unless `accept` is set; or
        the folder holds a run of another stage.
    """
    if not (workdir / "config.json").exists():
        return
    earlier = read_config(workdir)
    if earlier.stage != config.stage:
        raise ConfigError(
            f"{workdir} holds a run of stage {earlier.stage}, not {config.stage}; choose another "
            "--workdir"
        )
    changes = list(_differences(to_dict(earlier), to_dict(config)))
    refused = [text for name, text in changes if not name.startswith(FREE_FIELDS)]
    recorded = recorded_inputs(workdir)
    refused += [
        f"{name} {expected[:SHOWN_DIGITS]}... -> {inputs[name][:SHOWN_DIGITS]}..."
        for name, expected in recorded.items()
        if inputs.get(name, expected) != expected
    ]
    if refused and not accept:
        raise ConfigError(
            f"{workdir} holds a run that was trained otherwise: {'; '.join(refused)}. Choose "
            "another --workdir, start as before, or say --accept-changes"
        )
    for text in [t for name, t in changes if name.startswith("loop.")] + refused:
        print(f"launch.train: note: the run goes on with {text}", file=sys.stderr)
    if earlier.loop.steps != config.loop.steps and config.optimizer.schedule == "cosine":
        print("launch.train: note: the cosine schedule changes with loop.steps", file=sys.stderr)


def _differences(earlier: Any, now: Any, name: str = "") -> Iterable[tuple[str, str]]:
    """(field, "field old -> new") of everything that differs between two nested dicts."""
    if isinstance(earlier, dict) and isinstance(now, dict):
        for key in now:
            yield from _differences(earlier.get(key), now[key], f"{name}.{key}" if name else key)
    elif earlier != now:
        yield name, f"{name} {earlier!r} -> {now!r}"


def record_run(workdir: Path, config: TrainConfig, inputs: Mapping[str, str]) -> None:
    """Write `config.json` and `provenance.json`, both or none; after everything was checked."""
    path = workdir / "tokenizer.model"
    own = {TOKENIZER: bytes_identity(path.read_bytes())} if path.exists() else {}
    with replace_files_when_done(workdir) as folder:
        text = json.dumps(to_dict(config), indent=1) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")
        write_provenance(folder, Provenance({**inputs, **own}))


def recorded_inputs(workdir: Path) -> dict[str, str]:
    """What the run in a folder was given."""
    return dict(read_provenance(workdir)[0].identities)


def start_from(workdir: Path, config: TrainConfig) -> StartFrom:
    """Where a start in `workdir` goes on from: the step that the configuration names, if the run
    that the folder records has not gone back to it already; or, after `FAILURES` at one step, an
    earlier checkpoint than the newest."""
    if not (workdir / "config.json").exists():
        return StartFrom(exactly=config.loop.resume_step)
    asked = config.loop.resume_step
    if asked and asked != read_config(workdir).loop.resume_step:
        return StartFrom(exactly=asked)
    status = _read_status(workdir)
    if max(status["diverged"].values(), default=0) < FAILURES:
        return NEWEST
    return StartFrom(before_newest=True, falls=status["falls"] + 1)


def write_status(
    workdir: Path, state: str, step: int, steps: int, start: StartFrom = NEWEST
) -> None:
    """Replace `status.json`.

    start: where this start went on from.
    """
    earlier = _read_status(workdir)
    diverged: dict[str, int] = earlier["diverged"]
    if state == "running" and start != NEWEST:  # another way, whose failures are its own
        diverged = {}
    if state in ("finished", "stopped"):
        diverged = {at: count for at, count in diverged.items() if int(at) > step}
    if state == "diverged":
        diverged[str(step)] = diverged.get(str(step), 0) + 1
    content = {"state": state, "step": step, "steps": steps}
    more = {"diverged": diverged, "falls": max(earlier["falls"], start.falls)}
    with replace_when_done(workdir / STATUS) as path:
        written = content | {name: value for name, value in more.items() if value}
        path.write_text(json.dumps(written) + "\n", encoding="utf-8")


def _read_status(workdir: Path) -> dict[str, Any]:
    """{"diverged": {step: how often}, "falls": how often the run went back by itself}."""
    try:
        found = json.loads((workdir / STATUS).read_text(encoding="utf-8"))
        diverged = {str(int(at)): int(count) for at, count in found.get("diverged", {}).items()}
        return {"diverged": diverged, "falls": int(found.get("falls", 0))}
    except (OSError, ValueError, TypeError, AttributeError):
        return {"diverged": {}, "falls": 0}

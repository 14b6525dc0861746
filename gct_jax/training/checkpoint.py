"""Checkpoints: the only file that knows Orbax.

Each network's part of the state is an item of its own, such as `ema.ctvit`, so that a reader takes
only what it needs and a newer optimizer does not invalidate the weights. The item `progress` holds
the step and a checksum of every array, which are compared whenever one is read: a disk that changed
two bytes must not become a model. The newest whole checkpoint counts.
"""

import contextlib
import functools
import logging
import sys
from collections.abc import Callable, Collection, Iterator
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from gct_jax.errors import ConfigError, GctError, in_a_line
from gct_jax.random_keys import wrapped_key
from gct_jax.runtime.cluster import on_any_process
from gct_jax.runtime.storage import is_remote
from gct_jax.training.checksums import forest_checksums, tree_shapes
from gct_jax.training.retention import LatestAndTrusted, Trust
from gct_jax.training.spikes import new_record
from gct_jax.training.state import TREES, TrainState

_NOISY = ("absl", "asyncio")


Found = tuple[dict[str, Any], dict[str, Any]]


class DamagedError(Exception):
    """A checkpoint cannot be read, or holds other values than were saved."""


class Checkpoints:
    """Asynchronous checkpoints `folder/<step>` of a run: the last `keep` of them, and one that
    evaluations have shown to be sane (`gct_jax.training.retention`).

    Every process of a multi-host run must make every call; only one run may use a folder.
    """

    def __init__(self, folder: Any, keep: int = 2):
        self._folder = folder if is_remote(folder) else folder.absolute()
        self._trust = Trust()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=LatestAndTrusted(keep, self._trust), cleanup_tmp_directories=True
        )
        with _quiet():
            self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(self, state: TrainState) -> None:
        """Copy the state and write it in the background; a no-op if its step is already saved.

        Raises:
          GctError: this save or the one before it failed.
        """
        step = int(state.step)
        if step == self._manager.latest_step():
            return
        trees = state_items(state) | {
            "rng": {"key_data": jax.random.key_data(state.key)},
            "spikes": state.spikes,
        }
        sums = forest_checksums(trees)
        items: dict[str, Any] = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        progress = {"step": step, "arrays": sums, "trust": self._trust.to_dict()}
        items["progress"] = ocp.args.JsonSave(progress)
        with self._named():
            if not self._manager.save(step, args=ocp.args.Composite(**items)):
                raise GctError(f"{self._folder}: Orbax refused to save step {step}")

    def check(self) -> None:
        """Raise GctError if a save in the background has failed."""
        with self._named():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Until what was saved is on disk; raises GctError if it could not be."""
        with self._named():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def steps(self) -> list[int]:
        """Those that are saved, the oldest first."""
        return sorted(self._manager.all_steps())

    def evaluated(self, step: int, loss: float) -> None:
        """Take in the loss of an evaluation, by which checkpoints are kept."""
        if not self._trust.evaluated(step, loss) and jax.process_index() == 0:
            print(
                f"note: the evaluation at step {step} is far worse than the best before "
                f"({loss:.4g} after {self._trust.best:.4g}); a checkpoint from before is kept",
                file=sys.stderr,
            )

    def restore(self, abstract: TrainState, at: int | None = None) -> TrainState | None:
        """The newest whole checkpoint, placed as `abstract`'s ShapeDtypeStructs (with shardings)
        say, or None; the mesh may differ from the one that saved it.

        DamagedError ones that are newer are renamed to `<step>.damaged`, and said so.

        Args:
          at: go back to this step instead; newer ones are renamed to `<step>.later`.

        Raises:
          ConfigError: there is no checkpoint of step `at`.
          GctError: there are checkpoints but none is whole, or the newest is of another state.
        """
        if at is not None:
            self._go_back(at)
        trees = state_items(abstract)
        key_data = jax.eval_shape(jax.random.key_data, abstract.key)
        trees["rng"] = {
            "key_data": jax.ShapeDtypeStruct(
                key_data.shape, key_data.dtype, sharding=abstract.step.sharding
            )
        }
        trees["spikes"] = abstract.spikes
        found = _newest_whole(
            self._manager,
            trees,
            lambda step: self._set_aside(step, "damaged"),
            optional=("spikes",),
        )
        if found is None:
            return None
        step, restored, progress = found
        self._trust.load(progress.get("trust"))
        key = wrapped_key(restored.pop("rng")["key_data"])
        place = abstract.step.sharding
        spikes = restored.pop("spikes", None) or jax.device_put(new_record(), place)
        state = with_items(abstract, restored)
        return state.replace(step=jax.device_put(np.int32(step), place), key=key, spikes=spikes)

    def _go_back(self, at: int) -> None:
        """Set aside the checkpoints that are newer than step `at`."""
        steps = self.steps()
        if at not in steps:
            there = ", ".join(map(str, steps)) or "none"
            raise ConfigError(f"{self._folder} has no checkpoint of step {at}; it has {there}")
        for step in steps:
            if step > at:
                how = self._set_aside(step, "later")
                if jax.process_index() == 0:
                    print(f"note: going back to step {at}; that of {step}: {how}", file=sys.stderr)

    def _set_aside(self, step: int, why: str) -> str:
        """Rename a checkpoint, so that its step can be saved again; what was done."""
        source = self._folder / str(step)
        target = source.with_name(f"{step}.{why}")
        number = 1
        while target.exists():
            number += 1
            target = source.with_name(f"{step}.{why}{number}")
        if jax.process_index() == 0:
            source.rename(target)
        on_any_process(False)  # all wait for the first one
        self._manager.reload()
        return f"it is kept as {target.name}"

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except GctError:
            raise
        except Exception as error:  # whatever a file system or an array store may raise
            reason = in_a_line(error, 200)
            raise GctError(f"cannot save a checkpoint in {self._folder}: {reason}") from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.wait()
        except GctError:
            if error is None:
                raise
        finally:
            with contextlib.suppress(Exception):  # told above
                self._manager.close()


def state_items(state: TrainState) -> dict[str, Any]:
    """The trees of a state by item, such as "ema.ctvit"; empty ones are left out."""
    return {
        f"{name}.{component}": tree
        for name in TREES
        for component, tree in getattr(state, name).items()
        if jax.tree.leaves(tree)
    }


def with_items(state: TrainState, items: dict[str, Any]) -> TrainState:
    """The state with the trees of `items` in the place of its own."""
    trees = {name: dict(getattr(state, name)) for name in TREES}
    for item, tree in items.items():
        name, _, component = item.partition(".")
        trees[name][component] = tree
    return state.replace(**trees)


def read_items(folder: Any, abstract: TrainState, names: Collection[str]) -> TrainState:
    """The items `names` of the newest whole checkpoint, and its step.

    Nothing in `folder` is changed, so a run may be saving there.

    Args:
      folder: the run's `checkpoints`.
      abstract: shapes with shardings; all but `step` and the items stays as it is.
      names: of `state_items`.

    Raises:
      GctError: there is no checkpoint, none is whole, or the newest is of another state.
    """
    trees = {name: tree for name, tree in state_items(abstract).items() if name in names}
    with _quiet():
        options = ocp.CheckpointManagerOptions(read_only=True)
        place = folder if is_remote(folder) else folder.absolute()
        manager = ocp.CheckpointManager(place, options=options)
    try:
        found = _newest_whole(manager, trees, lambda step: "an earlier one is read")
    finally:
        manager.close()
    if found is None:
        raise GctError(f"{folder}: no checkpoint; train this stage first")
    step, restored, _ = found
    return with_items(abstract, restored).replace(step=jax.numpy.int32(step))


def _newest_whole(
    manager: ocp.CheckpointManager,
    trees: dict[str, Any],
    on_damage: Callable[[int], str],
    optional: Collection[str] = (),
) -> tuple[int, dict[str, Any], dict[str, Any]] | None:
    """Step, items and progress of the newest checkpoint that can be read and holds what was saved;
    without the `optional` items if it has none."""
    damage: dict[int, str] = {}
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            items, progress = _all_agree(functools.partial(_read, manager, step, trees, optional))
        except DamagedError as error:
            damage[step] = f"checkpoint {step} in {manager.directory} is damaged ({error})"
            continue
        for newer, text in damage.items():
            print(f"note: {text}; {on_damage(newer)}", file=sys.stderr)
        return step, items, progress
    if damage:  # nothing is moved: starting over is for the user to say
        raise GctError(f"{damage[min(damage)]}, and no other is whole; delete them to start over")
    return None


def _all_agree(read: Callable[[], Found]) -> Found:
    """What `read` returns, if it does so on every process."""
    problem: DamagedError | None = None
    try:
        result: Found = read()
    except DamagedError as error:
        result, problem = ({}, {}), error
    if on_any_process(problem is not None) and problem is None:
        problem = DamagedError("another process cannot read it")
    if problem is not None:
        raise problem
    return result


def _read(
    manager: ocp.CheckpointManager, step: int, trees: dict[str, Any], optional: Collection[str]
) -> Found:
    """Items and progress of one checkpoint, compared with their checksums.

    Raises:
      DamagedError: something is missing, unreadable or changed.
      GctError: the checkpoint is whole, but of a state with other arrays.
    """
    with _quiet():
        progress = _attempt(
            lambda: manager.restore(step, args=ocp.args.Composite(progress=ocp.args.JsonRestore()))[
                "progress"
            ]
        )
        if not isinstance(progress, dict) or progress.get("step") != step:
            raise DamagedError("progress: it is not of this step")
        recorded = progress.get("arrays", {})
        trees = {
            name: tree for name, tree in trees.items() if name in recorded or name not in optional
        }
        _require_same_arrays(manager.directory, step, recorded, trees)
        items = {name: ocp.args.StandardRestore(tree) for name, tree in trees.items()}
        restored = _attempt(lambda: manager.restore(step, args=ocp.args.Composite(**items)))
        sums = _attempt(lambda: forest_checksums({name: restored[name] for name in trees}))
        for name, found in sums.items():
            changed = [p for p, value in found.items() if recorded.get(name, {}).get(p) != value]
            if changed and recorded:
                raise DamagedError(f"{name}{changed[0]} holds other values than were saved")
    return {name: restored[name] for name in trees}, progress


def _attempt(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # a damaged file can raise anything
        raise DamagedError(in_a_line(error)) from error


def _require_same_arrays(
    folder: Any, step: int, recorded: dict[str, dict], trees: dict[str, Any]
) -> None:
    for name, tree in trees.items():
        if name not in recorded:
            continue
        saved = {path: shape for path, (shape, _) in recorded[name].items()}
        wanted = tree_shapes(tree)
        for path in sorted(saved | wanted):
            if saved.get(path) != wanted.get(path):
                raise GctError(
                    f"{folder}/{step} holds another {name}: {path} is "
                    f"{saved.get(path, 'absent')} there, {wanted.get(path, 'absent')} in this "
                    "configuration; resume with the configuration that it was trained with"
                )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What is told in one line need not be logged in thirty."""
    levels = {name: logging.getLogger(name).level for name in _NOISY}
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)

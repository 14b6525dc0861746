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
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import LatestN

from gct_jax.errors import GctError
from gct_jax.random_keys import wrapped_key
from gct_jax.training.checksums import tree_checksums, tree_shapes
from gct_jax.training.state import TrainState

_TREES = ("params", "ema", "opt_state", "extra")
_NOISY = ("absl", "asyncio")


class DamagedError(Exception):
    """A checkpoint cannot be read, or holds other values than were saved."""


class Checkpoints:
    """Asynchronous checkpoints `folder/<step>` of a run, the last `keep` of them.

    Every process of a multi-host run must make every call; only one run may use a folder.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self._folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=LatestN(keep), cleanup_tmp_directories=True
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
        trees = state_items(state) | {"rng": {"key_data": jax.random.key_data(state.key)}}
        sums = {name: tree_checksums(tree) for name, tree in trees.items()}
        items: dict[str, Any] = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        items["progress"] = ocp.args.JsonSave({"step": step, "arrays": sums})
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

    def restore(self, abstract: TrainState) -> TrainState | None:
        """The newest whole checkpoint, placed as `abstract`'s ShapeDtypeStructs (with shardings)
        say, or None; the mesh may differ from the one that saved it.

        DamagedError ones that are newer are renamed to `<step>.damaged`, and said so.

        Raises:
          GctError: there are checkpoints but none is whole, or the newest is of another state.
        """
        trees = state_items(abstract)
        key_data = jax.eval_shape(jax.random.key_data, abstract.key)
        trees["rng"] = {
            "key_data": jax.ShapeDtypeStruct(
                key_data.shape, key_data.dtype, sharding=abstract.step.sharding
            )
        }
        found = _newest_whole(self._manager, trees, self._set_aside)
        if found is None:
            return None
        step, restored = found
        key = wrapped_key(restored.pop("rng")["key_data"])
        step_array = jax.device_put(jax.numpy.int32(step), abstract.step.sharding)
        return with_items(abstract, restored).replace(step=step_array, key=key)

    def preempted(self, step: int) -> bool:
        """Whether the cluster has announced to some process that it will take the machine."""
        return self._manager.reached_preemption(step)

    def _set_aside(self, step: int) -> str:
        """Rename a damaged checkpoint, so that its step can be saved again; what was done."""
        source = self._folder / str(step)
        target = source.with_name(f"{step}.damaged")
        number = 1
        while target.exists():
            number += 1
            target = source.with_name(f"{step}.damaged{number}")
        if jax.process_index() == 0:
            source.rename(target)
        if jax.process_count() > 1:
            from jax.experimental.multihost_utils import sync_global_devices

            sync_global_devices(f"set aside {step}")
        self._manager.reload()
        return f"it is kept as {target.name}"

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except GctError:
            raise
        except Exception as error:  # whatever a file system or an array store may raise
            reason = " ".join(str(error).split())[:200] or type(error).__name__
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
        for name in _TREES
        for component, tree in getattr(state, name).items()
        if jax.tree.leaves(tree)
    }


def with_items(state: TrainState, items: dict[str, Any]) -> TrainState:
    """The state with the trees of `items` in the place of its own."""
    trees = {name: dict(getattr(state, name)) for name in _TREES}
    for item, tree in items.items():
        name, _, component = item.partition(".")
        trees[name][component] = tree
    return state.replace(**trees)


def read_items(folder: Path, abstract: TrainState, names: Collection[str]) -> TrainState:
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
        manager = ocp.CheckpointManager(folder.absolute(), options=options)
    try:
        found = _newest_whole(manager, trees, lambda step: "an earlier one is read")
    finally:
        manager.close()
    if found is None:
        raise GctError(f"{folder}: no checkpoint; train this stage first")
    step, restored = found
    return with_items(abstract, restored).replace(step=jax.numpy.int32(step))


def _newest_whole(
    manager: ocp.CheckpointManager, trees: dict[str, Any], on_damage: Callable[[int], str]
) -> tuple[int, dict[str, Any]] | None:
    """Step and items of the newest checkpoint that can be read and holds what was saved."""
    damage: dict[int, str] = {}
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            found = _all_agree(functools.partial(_read, manager, step, trees))
        except DamagedError as error:
            damage[step] = f"checkpoint {step} in {manager.directory} is damaged ({error})"
            continue
        for newer, text in damage.items():
            print(f"note: {text}; {on_damage(newer)}", file=sys.stderr)
        return step, found
    if damage:  # nothing is moved: starting over is for the user to say
        raise GctError(f"{damage[min(damage)]}, and no other is whole; delete them to start over")
    return None


def _all_agree(read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `read` returns, if it does so on every process."""
    try:
        result, problem = read(), None
    except DamagedError as error:
        result, problem = {}, error
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import process_allgather

        if problem is None and process_allgather(jax.numpy.int32(0)).any():
            problem = DamagedError("another process cannot read it")
        elif problem is not None:
            process_allgather(jax.numpy.int32(1))
    if problem is not None:
        raise problem
    return result


def _read(manager: ocp.CheckpointManager, step: int, trees: dict[str, Any]) -> dict[str, Any]:
    """Items of one checkpoint, compared with their checksums.

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
        _require_same_arrays(manager.directory, step, recorded, trees)
        items = {name: ocp.args.StandardRestore(tree) for name, tree in trees.items()}
        restored = _attempt(lambda: manager.restore(step, args=ocp.args.Composite(**items)))
        for name in trees:
            found = _attempt(functools.partial(tree_checksums, restored[name]))
            changed = [p for p, value in found.items() if recorded.get(name, {}).get(p) != value]
            if changed and recorded:
                raise DamagedError(f"{name}{changed[0]} holds other values than were saved")
    return {name: restored[name] for name in trees}


def _attempt(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # a damaged file can raise anything
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise DamagedError(reason) from error


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

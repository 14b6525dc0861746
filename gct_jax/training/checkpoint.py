"""Checkpoints: the only file that knows Orbax.

Each part of the state is an item of its own, so that a reader takes only what it needs (an export
reads `ema` and `extra`) and a newer optimizer does not invalidate the weights.
"""

from pathlib import Path
from types import TracebackType

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import LatestN

from gct_jax.errors import GctError
from gct_jax.random_keys import wrapped_key
from gct_jax.training.state import TrainState

_TREES = ("params", "ema", "opt_state", "extra")


class Checkpoints:
    """Asynchronous checkpoints `folder/<step>`, the last `keep` of them.

    Every process of a multi-host run must make every call.
    """

    def __init__(self, folder: Path, keep: int = 2):
        options = ocp.CheckpointManagerOptions(
            preservation_policy=LatestN(keep), cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Copy the state and write it in the background; a no-op if its step is already saved."""
        step = int(state.step)
        if step == self._manager.latest_step():
            return
        trees = {name: tree for name in _TREES if (tree := getattr(state, name))}
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        items["rng"] = ocp.args.StandardSave({"key_data": jax.random.key_data(state.key)})
        items["progress"] = ocp.args.JsonSave({"step": step})
        self._manager.save(step, args=ocp.args.Composite(**items))

    def restore(self, abstract: TrainState) -> TrainState:
        """The newest checkpoint, placed as `abstract`'s ShapeDtypeStructs (with shardings) say;
        the mesh may differ from the one that saved it.

        Raises:
          GctError: there is no checkpoint.
        """
        step = self.latest_step()
        if step is None:
            raise GctError(f"{self._manager.directory}: no checkpoint; train this stage first")
        trees = {name: tree for name in _TREES if (tree := getattr(abstract, name))}
        key_data = jax.eval_shape(jax.random.key_data, abstract.key)
        key_data = jax.ShapeDtypeStruct(
            key_data.shape, key_data.dtype, sharding=abstract.step.sharding
        )
        items = {name: ocp.args.StandardRestore(tree) for name, tree in trees.items()}
        items["rng"] = ocp.args.StandardRestore({"key_data": key_data})
        items["progress"] = ocp.args.JsonRestore()
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        return abstract.replace(
            step=jax.device_put(
                jax.numpy.int32(restored["progress"]["step"]), abstract.step.sharding
            ),
            key=wrapped_key(restored["rng"]["key_data"]),
            **{name: restored[name] for name in trees},
        )

    def preempted(self, step: int) -> bool:
        """Whether the cluster has announced to some process that it will take the machine."""
        return self._manager.reached_preemption(step)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

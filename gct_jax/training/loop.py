"""The training loop, the same for every stage.

A stage is three pure functions; the loop owns everything else: placement on devices, compilation,
the order of steps, metrics, sample images, checkpoints and a clean end.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree
from tqdm import tqdm

from gct_jax.errors import ConfigError, GctError
from gct_jax.random_keys import random_key
from gct_jax.runtime.numerics import fixed_numerics
from gct_jax.runtime.stopping import stop_requests
from gct_jax.sharding import make_mesh, shard_batch, state_shardings
from gct_jax.training.checkpoint import Checkpoints
from gct_jax.training.config import LoopConfig
from gct_jax.training.metrics import MetricsWriter, mean_metrics
from gct_jax.training.state import TrainState

Batch = dict[str, Any]


class Stage(NamedTuple):
    """Pure functions of one stage, its configuration already bound.

    init_state(key, pretrained) -> state; train_step(state, batch, key) -> (state, metrics);
    eval_step(state, batch, key) -> metrics. Metrics are scalars by name.
    """

    init_state: Callable[[jax.Array, Any], TrainState]
    train_step: Callable[[TrainState, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]
    eval_step: Callable[[TrainState, Batch, jax.Array], dict[str, jax.Array]]


def train(
    stage: Stage,
    config: LoopConfig,
    workdir: Path,
    batches: Callable[[int], Iterator[Batch]],
    *,
    pretrained: PyTree = None,
    held_out: Sequence[Batch] = (),
    sample_images: Callable[[TrainState], dict[str, np.ndarray]] | None = None,
    on_change: Callable[[str, int], None] = lambda status, step: None,
) -> TrainState:
    """Train to `config.steps`, starting from the newest whole checkpoint in `workdir` if there is
    one.

    Args:
      batches: `batches(start_step)` yields this process's NumPy batches of steps start_step, ...
      pretrained: arrays of earlier stages that `init_state` starts from.
      held_out: batches for `eval_step`, logged as `eval/...`.
      sample_images: uint8 images by name, drawn every `config.sample_every` steps.
      on_change: told "running" when everything that can be refused was accepted, and then, in the
        end, "finished", "stopped" or "failed", with the step.

    Returns:
      The state at `config.steps`, or earlier if a signal or a preemption asked to stop; it is on
      disk in either case.

    Raises:
      GctError: a metric is not finite (nothing is saved from that point on), or a checkpoint could
        not be saved.
      ConfigError: the mesh does not fit the devices or the batch.
    """
    # --- Devices: shapes first, then the layout, then the arrays themselves
    mesh = fitting_mesh(config)
    root_key = random_key(config.seed)
    abstract = jax.eval_shape(stage.init_state, root_key, pretrained)
    shardings = state_shardings(abstract, mesh)
    train_step = jitted_train_step(stage, shardings, mesh)
    eval_step = jax.jit(stage.eval_step, in_shardings=(shardings, None, None))

    with (
        fixed_numerics(),
        jax.set_mesh(mesh),
        _told(on_change, config.steps) as progress,
        stop_requests(jax.process_count()) as stop_requested,
        Checkpoints(workdir / "checkpoints", config.keep_checkpoints) as saved,
    ):
        # --- Restore or initialise
        state = saved.restore(with_shardings(abstract, shardings))
        if state is None:
            state = jax.jit(stage.init_state, out_shardings=shardings)(root_key, pretrained)
        start = progress.step = int(state.step)
        on_change("running", start)
        progress.running = True

        writes = jax.process_index() == 0
        with MetricsWriter(workdir, start, writes) as writer:
            # --- Train
            stream = batches(start)
            window: list[tuple[int, dict[str, jax.Array]]] = []
            since = time.perf_counter()
            bar = tqdm(
                range(start + 1, config.steps + 1),
                initial=start,
                total=config.steps,
                unit="step",
                dynamic_ncols=True,
                disable=not writes,
            )
            for step in bar:
                state, metrics = train_step(state, shard_batch(next(stream), mesh))
                progress.step = step
                # The device computes this step while the host makes the next batch, not more:
                # otherwise progress and signals would run ahead of the work.
                jax.block_until_ready(window[-1:])
                window.append((step, metrics))
                finished = step == config.steps
                last = finished or stop_requested() or saved.preempted(step)
                saves = last or is_due(step, config.checkpoint_every)

                if saves or is_due(step, config.log_every):  # the watchdog sees what is saved
                    means = mean_metrics(jax.device_get(window))
                    seconds = (time.perf_counter() - since) / len(window)
                    writer.scalars(step, {**means, "seconds_per_step": seconds})
                    bar.set_postfix(loss=f"{means['loss']:.4f}")
                    window, since = [], time.perf_counter()
                # A stop leaves little time: it is saved, not evaluated.
                stopped = last and not finished
                if held_out and not stopped and (last or is_due(step, config.eval_every)):
                    writer.scalars(step, evaluate(eval_step, state, held_out, mesh))
                if sample_images and not stopped and (last or is_due(step, config.sample_every)):
                    writer.images(step, sample_images(state))
                saved.check()  # that of an earlier step, in the background
                if saves:
                    saved.save(state)
                if last:
                    break
    return state


def fitting_mesh(config: LoopConfig) -> jax.sharding.Mesh:
    """The mesh of `config.mesh` on this run's devices.

    Raises:
      ConfigError: it does not fit the devices or the batch.
    """
    mesh = make_mesh(config.mesh)
    shares = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.batch_size % shares:
        raise ConfigError(
            f"loop.batch_size = {config.batch_size} cannot be split over data x fsdp = {shares} "
            "devices; change it or loop.mesh"
        )
    return mesh


def jitted_train_step(stage: Stage, shardings: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
    """The compiled step (state, batch) -> (state one step later, metrics); the state is donated.

    shardings: of the state, from `state_shardings`.
    """

    def step_fn(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        state, metrics = stage.train_step(state, batch, jax.random.fold_in(state.key, state.step))
        return state.replace(step=state.step + 1), metrics

    return jax.jit(
        step_fn,
        in_shardings=(shardings, None),
        out_shardings=(shardings, NamedSharding(mesh, P())),
        donate_argnums=0,
    )


def evaluate(
    eval_step: Callable, state: TrainState, held_out: Sequence[Batch], mesh: jax.sharding.Mesh
) -> dict[str, float]:
    """Mean metrics over the held-out batches; batch i always draws from the same key."""
    key = random_key(0)
    results = [
        (i, eval_step(state, shard_batch(batch, mesh), jax.random.fold_in(key, i)))
        for i, batch in enumerate(held_out)
    ]
    return {f"eval/{name}": value for name, value in mean_metrics(jax.device_get(results)).items()}


def with_shardings(abstract: PyTree, shardings: PyTree) -> PyTree:
    """ShapeDtypeStructs that carry their sharding, as a restore needs them."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings,
    )


def is_due(step: int, every: int) -> bool:
    """Whether an event that happens every `every` steps (0: never) falls on `step`."""
    return every > 0 and step % every == 0


@dataclasses.dataclass
class _Progress:
    step: int = 0
    running: bool = False


@contextlib.contextmanager
def _told(on_change: Callable[[str, int], None], steps: int) -> Iterator[_Progress]:
    """Tell `on_change` how the body ended; the body keeps the step."""
    progress = _Progress()
    try:
        yield progress
    except BaseException:
        if progress.running:
            with contextlib.suppress(GctError, OSError):  # such as the full disk that ended it
                on_change("failed", progress.step)
        raise
    on_change("finished" if progress.step >= steps else "stopped", progress.step)

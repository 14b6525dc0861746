"""The training loop, the same for every stage.

A stage is three pure functions; the loop owns everything else: placement on devices, compilation,
the order of steps, metrics, sample images, checkpoints and a clean end.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree
from tqdm import tqdm

from gct_jax.chips import peak_flops
from gct_jax.errors import ConfigError, GctError
from gct_jax.random_keys import random_key
from gct_jax.runtime.numerics import fixed_numerics
from gct_jax.runtime.stopping import stop_requests
from gct_jax.runtime.supervision import is_loss
from gct_jax.sharding import make_mesh, shard_batch, state_shardings
from gct_jax.training import spikes
from gct_jax.training.agreement import ASKED, Agreement
from gct_jax.training.checkpoint import Checkpoints
from gct_jax.training.clock import Clock
from gct_jax.training.config import LoopConfig
from gct_jax.training.metrics import MetricsWriter, NotFiniteError, mean_metrics
from gct_jax.training.overview import tell_undonated
from gct_jax.training.profile import Profile
from gct_jax.training.start import NEWEST, StartFrom
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


class HeldOut(NamedTuple):
    """A batch for evaluation: how many rows it has on all processes together, and this process's
    (`gct_jax.sharding.process_rows`)."""

    rows: int
    batch: Batch


def train(
    stage: Stage,
    config: LoopConfig,
    workdir: Path,
    batches: Callable[[int], Iterator[Batch]],
    *,
    pretrained: PyTree = None,
    spike_factor: float = 0.0,
    held_out: Sequence[HeldOut] = (),
    sample_images: Callable[[TrainState], dict[str, np.ndarray]] | None = None,
    on_change: Callable[[str, int], None] = lambda status, step: None,
    cases_of: Callable[[int], str] = lambda step: "",
    step_flops: float | None = None,
    profile_step: int = 0,
    start_from: StartFrom = NEWEST,
    checkpoints: Any = None,
    on_files: Callable[[bool], None] = lambda now: None,
) -> TrainState:
    """Train to `config.steps`, starting from the newest whole checkpoint in `workdir` if there is
    one.

    Args:
      batches: `batches(start_step)` yields this process's rows of the batches of steps start_step,
        start_step + 1, ... as NumPy arrays.
      pretrained: arrays of earlier stages that `init_state` starts from.
      spike_factor: see `gct_jax.training.spikes`.
      held_out: batches for `eval_step`, logged as `eval/...`.
      sample_images: uint8 images by name, drawn every `config.sample_every` steps; every process
        is asked.
      on_change: told "running" when everything that can be refused was accepted, "saved" at each
        checkpoint, and in the end "finished", "stopped", "diverged" (a metric is not finite),
        "interrupted" (another process was lost) or "failed", with the step; of the last two that of
        the last checkpoint.
      cases_of: start_step, ... -> the cases of its batch in words, for a message.
      step_flops: operations of a step on all devices together, for the metrics.
      profile_step: steps from here on are profiled into `workdir/profile`; 0: none.
      start_from: an earlier checkpoint than the newest.
      checkpoints: where they lie, if not in `workdir`, as in an object store.
      on_files: told when files in `workdir` have changed, and whether that matters now.

    Returns:
      The state at `config.steps`, or earlier if a signal to any process asked to stop; it is on
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
    train_step = jitted_train_step(stage, shardings, mesh, spike_factor)
    eval_step = jax.jit(stage.eval_step, in_shardings=(shardings, None, None))

    with (
        fixed_numerics(),
        jax.set_mesh(mesh),
        _told(on_change, config.steps) as progress,
        stop_requests() as stop_requested,
        Checkpoints(checkpoints or workdir / "checkpoints", config.keep_checkpoints) as saved,
    ):
        # --- Restore or initialise
        state = saved.restore(with_shardings(abstract, shardings), start_from.step(saved.steps()))
        if state is None:
            state = jax.jit(stage.init_state, out_shardings=shardings)(root_key, pretrained)
        state = start_from.rekeyed(state)
        start = progress.step = progress.saved = int(state.step)
        on_change("running", start)
        progress.running = True

        writes = jax.process_index() == 0
        with (
            MetricsWriter(workdir, start, writes) as writer,
            Profile(workdir / "profile", profile_step) as profile,
            contextlib.ExitStack() as shown,
        ):
            writer.tables(state, shardings)
            # --- Train
            stream = batches(start)
            stop = Agreement(mesh)
            clock = Clock(
                config.batch_size, step_flops, peak_flops(mesh.devices.flatten().tolist())
            )
            window: list[tuple[int, dict[str, jax.Array]]] = []
            bar = shown.enter_context(
                tqdm(
                    desc="compiling" if start < config.steps else "finished before",
                    initial=start,
                    total=config.steps,
                    unit="step",
                    dynamic_ncols=True,
                    disable=not writes,
                )
            )
            for step in range(start + 1, config.steps + 1):
                with clock.on("data"):
                    batch = next(stream)
                before = state
                with jax.transfer_guard("disallow"), profile.of(step):
                    rows = shard_batch(batch, mesh, config.batch_size)
                    state, metrics = train_step(state, rows, stop.ask(stop_requested()))
                progress.step = step
                bar.update()
                if step == start + 1:
                    tell_undonated(before)
                    bar.set_description("training")
                # The device computes this step while the host makes the next batch, not more:
                # otherwise progress and signals would run ahead of the work.
                jax.block_until_ready(window[-1:])
                stopping = stop.agreed(stop_requested(), metrics.pop(ASKED))
                window.append((step, metrics))
                finished = step == config.steps
                last = finished or stopping
                saves = last or is_due(step, config.checkpoint_every)

                if saves or is_due(step, config.log_every):  # the watchdog sees what is saved
                    means = _finite_means(window, cases_of)
                    writer.scalars(step, {**means, **clock.read(len(window))})
                    bar.set_postfix(loss=f"{means['loss']:.4f}")
                    window = []
                with clock.on("evaluate"):
                    # A stop leaves little time: it is saved, not evaluated.
                    stopped = last and not finished
                    if held_out and not stopped and (last or is_due(step, config.eval_every)):
                        bar.set_description("evaluating")
                        found = evaluate(eval_step, state, held_out, mesh)
                        writer.scalars(step, found)
                        saved.evaluated(step, found["eval/loss"])
                    if (
                        sample_images
                        and not stopped
                        and (last or is_due(step, config.sample_every))
                    ):
                        bar.set_description("drawing samples")
                        writer.images(step, sample_images(state))
                with clock.on("save"):
                    saved.check()  # that of an earlier step, in the background
                    if saves:
                        bar.set_description("saving")
                        saved.save(state)
                        progress.saved = step
                        if not last:
                            on_change("saved", step)
                    on_files(last)
                if last:
                    break
                bar.set_description("training", refresh=False)
    return state


def _finite_means(
    window: Sequence[tuple[int, dict[str, jax.Array]]], cases_of: Callable[[int], str]
) -> dict[str, float]:
    """Means of a window's metrics; what is not finite is told with the cases of its batch."""
    try:
        return mean_metrics(jax.device_get(window))
    except NotFiniteError as error:
        raise error.advised(cases_of(error.step - 1)) from None


def fitting_mesh(config: LoopConfig) -> jax.sharding.Mesh:
    """The mesh of `config.mesh` on this run's devices.

    Raises:
      ConfigError: it does not fit the devices or the batch.
    """
    mesh = make_mesh(config.mesh)
    require_split(config, mesh)
    return mesh


def require_split(config: LoopConfig, mesh: jax.sharding.Mesh) -> None:
    """Raise ConfigError unless the mesh splits a batch evenly."""
    shares = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.batch_size % shares:
        raise ConfigError(
            f"loop.batch_size = {config.batch_size} cannot be split over data x fsdp = {shares} "
            "devices; change it or loop.mesh"
        )
    if config.batch_size % (shares * config.micro_batches):
        raise ConfigError(
            f"loop.batch_size = {config.batch_size} cannot be split into loop.micro_batches = "
            f"{config.micro_batches} x {shares} devices; change one of them"
        )


def jitted_train_step(
    stage: Stage, shardings: PyTree, mesh: jax.sharding.Mesh, spike_factor: float = 0.0
) -> PyTree:
    """The compiled step (state, batch, asked) -> (state one step later, metrics); the state is
    donated.

    Args:
      shardings: of the state, from `state_shardings`.
      spike_factor: see `gct_jax.training.spikes`.

    asked: None, or `Agreement.ask`; the metrics then have its answer as `ASKED`.
    """

    def step_fn(
        state: TrainState, batch: Batch, asked: jax.Array | None
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(state.key, state.step)
        after, metrics = stage.train_step(state, batch, key)
        if spike_factor:
            after = spikes.guarded(state, after, metrics["norm/gradient"], spike_factor)
            metrics = {**metrics, "skipped_steps": after.spikes["skipped"]}
        if asked is not None:
            metrics = {**metrics, ASKED: jnp.any(asked)}
        return after.replace(step=state.step + 1), metrics

    return jax.jit(
        step_fn,
        in_shardings=(shardings, None, None),
        out_shardings=(shardings, NamedSharding(mesh, P())),
        donate_argnums=0,
    )


def evaluate(
    eval_step: Callable, state: TrainState, held_out: Sequence[HeldOut], mesh: jax.sharding.Mesh
) -> dict[str, float]:
    """Mean metrics over the rows that are held out; batch i always draws from the same key.

    Raises:
      NotFiniteError: one is not finite.
    """
    key, step = random_key(0), int(state.step)
    results = [
        (step, eval_step(state, shard_batch(batch, mesh, rows), jax.random.fold_in(key, i)))
        for i, (rows, batch) in enumerate(held_out)
    ]
    try:
        means = mean_metrics(jax.device_get(results), [rows for rows, _ in held_out])
    except NotFiniteError as error:
        raise error.advised("held out") from None
    return {f"eval/{name}": value for name, value in means.items()}


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
    saved: int = 0
    running: bool = False


@contextlib.contextmanager
def _told(on_change: Callable[[str, int], None], steps: int) -> Iterator[_Progress]:
    """Tell `on_change` how the body ended; the body keeps the step."""
    progress = _Progress()
    try:
        yield progress
    except BaseException as error:
        if progress.running:
            with contextlib.suppress(GctError, OSError):  # such as the full disk that ended it
                if isinstance(error, NotFiniteError):
                    on_change("diverged", error.step)
                else:
                    lost = isinstance(error, Exception) and is_loss(error)
                    on_change("interrupted" if lost else "failed", progress.saved)
        raise
    on_change("finished" if progress.step >= steps else "stopped", progress.step)

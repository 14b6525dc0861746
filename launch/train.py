"""Train one stage.

    python -m launch.train --config configs/demo.py:ctvit --workdir out/ctvit
    python -m launch.train --config configs/demo.py:maskgit --workdir out/maskgit --from out/ctvit
    python -m launch.train --config configs/demo.py:superres --workdir out/superres \\
        --from out/ctvit --from out/maskgit loop.steps=2000 optimizer.learning_rate=1e-4

`--from` takes training folders and model folders, `field=value` changes the configuration.
`data.folder=FOLDER` trains on what `launch.prepare` wrote; without it one process renders the
phantom as it goes. Running the same command again resumes. Ctrl-C, SIGTERM and SIGHUP, to any of
several processes, save first: the exit code is 0 if the run reached its last step, 75 if it was
stopped before or another process was lost, so that the same command goes on, 2 if something was
refused.
"""

import argparse
import contextlib
import dataclasses
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gct_jax.errors import ConfigError, UnfinishedError
from gct_jax.runtime.exit_codes import exit_code
from gct_jax.runtime.stopping import deferred
from gct_jax.runtime.supervision import is_supervised, run_supervised, supervise, tell_joined
from launch.extras import require_extras
from launch.options import add_config_options, load_config, prepare_command

if TYPE_CHECKING:
    from gct_jax.runtime.storage import WorkFolder
    from gct_jax.training.config import TrainConfig
    from gct_jax.training.stages import Components
    from launch.arrays import Cases
    from launch.data import StageData
    from launch.shard_data import Shards


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or as above."""
    words = sys.argv[1:] if arguments is None else arguments
    options = parsed(words)
    if options.multi_host is not None and not is_supervised():
        return supervise("launch.train", words)

    def command() -> None:
        require_extras("train")
        run(options)

    if options.multi_host is None:
        return exit_code("launch.train", command)
    return run_supervised("launch.train", command)


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The options of a command line."""
    parser = argparse.ArgumentParser(prog="launch.train", description="Train one stage.")
    add_config_options(parser)
    parser.add_argument("--workdir", required=True, help="on a disk, or gs://BUCKET/...")
    parser.add_argument(
        "--multi-host",
        nargs="?",
        const="",
        metavar="HOST:PORT,COUNT,INDEX",
        help="one process per host; without a value the cluster says where the others are",
    )
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="resume although the configuration or the networks it was given changed",
    )
    parser.add_argument(
        "--profile",
        type=int,
        default=0,
        metavar="STEP",
        help="trace five steps from this one on into WORKDIR/profile, for TensorBoard",
    )
    return parser.parse_intermixed_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Load, check, open the data, train.

    Raises:
      GctError: something was refused, here or on another process; nothing was written.
      UnfinishedError: the run was stopped before its last step, and saved.
    """
    config = load_config(options.config, options.overrides)

    with deferred():
        import jax

        from gct_jax.runtime.cluster import (
            join,
            require_common_folder,
            require_same,
            together,
        )
        from gct_jax.runtime.numerics import fix_numerics, prepare_jax
        from gct_jax.runtime.storage import WorkFolder
        from gct_jax.training.run_folder import check_resume, run_fields, run_inputs

    fix_numerics("launch.train")
    if options.multi_host is not None:
        join(options.multi_host)
        tell_joined()
    prepare_jax("launch.train")
    work = together(lambda: WorkFolder(options.workdir, writes=jax.process_index() == 0))
    with work.named(), contextlib.ExitStack() as held:
        require_common_folder(work.place)
        config, components, cases = together(lambda: opened(options, config))
        inputs = run_inputs(config, components.provenance)
        require_same({**run_fields(config), **inputs})
        together(lambda: held.enter_context(alone_in(work)))
        together(lambda: check_resume(work.local, config, inputs, options.accept_changes))
        step = train_in(work, options, config, components, inputs, cases)
    if step < config.loop.steps:
        raise UnfinishedError(
            f"stopped at step {step} of {config.loop.steps} and saved; "
            "run the same command to go on"
        )
    if jax.process_index() == 0:
        print(f"{options.workdir}: finished at step {step}")


def opened(
    options: argparse.Namespace, config: "TrainConfig"
) -> "tuple[TrainConfig, Components, Cases | Shards]":
    """The configuration with the sizes of the earlier networks, these networks, and the cases.

    Raises:
      GctError: they do not fit each other, the stage or the devices.
    """
    from gct_jax.components import check_components_fit
    from gct_jax.training.loop import fitting_mesh
    from gct_jax.training.stages import join_components
    from launch.data import check_data

    components = join_components(
        config.model,
        options.networks,
        allow_unfinished=options.allow_unfinished,
        accept_mismatch=options.accept_changes,
    )
    if config.ctvit.vgg16:
        components.variables["vgg16"] = read_vgg16(Path(config.ctvit.vgg16))
    check_components_fit(components.config)
    config = dataclasses.replace(config, model=components.config)
    fitting_mesh(config.loop)
    return config, components, check_data(config, components, prepare_command(options))


def alone_in(work: "WorkFolder") -> contextlib.AbstractContextManager:
    """The folder's lock, which the first process takes for all."""
    import jax

    from gct_jax.runtime.lock import leased, locked
    from gct_jax.runtime.storage import is_remote

    if jax.process_index():
        return contextlib.nullcontext()
    return leased(work.place) if is_remote(work.place) else locked(work.local)


def train_in(
    work: "WorkFolder",
    options: argparse.Namespace,
    config: "TrainConfig",
    components: "Components",
    inputs: dict[str, str],
    cases: "Cases | Shards",
) -> int:
    """Open the data and train in a folder that no other run uses.

    Returns:
      The step that was reached.
    """
    import jax

    from gct_jax.chips import peak_flops
    from gct_jax.runtime.cluster import together
    from gct_jax.sharding import process_rows
    from gct_jax.training.loop import fitting_mesh, train
    from gct_jax.training.run_folder import record_run, start_from, write_status
    from gct_jax.training.stages import make_stage
    from launch.data import stage_data
    from launch.samples import SAMPLERS, sample_function

    workdir, stage = work.local, make_stage(config)
    own_rows = functools.partial(process_rows, fitting_mesh(config.loop))
    data = together(
        lambda: stage_data(config, cases, workdir, components, prepare_command(options), own_rows)
    )
    start = start_from(workdir, config)

    def on_change(status: str, step: int) -> None:
        if jax.process_index() == 0:
            if status == "running":
                record_run(workdir, config, inputs)
            state = "running" if status == "saved" else status
            write_status(workdir, state, step, config.loop.steps, start)
            if status != "saved":
                work.publish(now=True)

    draws = config.stage in SAMPLERS
    state = train(
        stage,
        config.loop,
        workdir,
        data.batches,
        pretrained=components.variables,
        spike_factor=config.optimizer.spike_factor,
        held_out=data.held_out,
        sample_images=sample_function(config, components, data.shown) if draws else None,
        on_change=on_change,
        cases_of=data.cases_of,
        # Tracing a step takes seconds, and without a peak to compare with it says little.
        step_flops=model_flops(config, components, data) if peak_flops(jax.devices()) else None,
        profile_step=options.profile,
        start_from=start,
        checkpoints=work.place / "checkpoints",
        on_files=work.publish,
    )
    return int(state.step)


def model_flops(config: "TrainConfig", components: "Components", data: "StageData") -> float:
    """Operations of the global batch's step in matrix products and convolutions, nothing computed
    twice to save memory."""
    import jax

    from gct_jax.flops import count_flops
    from gct_jax.random_keys import random_key
    from gct_jax.training.stages import make_stage

    loop = dataclasses.replace(config.loop, micro_batches=1)
    stage = make_stage(dataclasses.replace(config, remat=False, loop=loop))
    rows = config.loop.batch_size
    batch = {
        name: jax.ShapeDtypeStruct((rows, *array.shape[1:]), array.dtype)
        for name, array in data.shown.items()
    }
    key = random_key(0)
    state = jax.eval_shape(stage.init_state, key, components.variables)
    return count_flops(stage.train_step, state, batch, key).total


def read_vgg16(path: Path) -> dict:
    """Parameters of the perceptual network from torchvision's weights as .safetensors."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    from gct_jax.models.perceptual import vgg16_from_torchvision

    try:
        return vgg16_from_torchvision(load_file(path))
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"cannot read ctvit.vgg16 = {path}: {error}") from None


if __name__ == "__main__":
    sys.exit(main())

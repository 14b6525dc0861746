"""Train one stage.

    python -m launch.train --config configs/demo.py:ctvit --workdir out/ctvit
    python -m launch.train --config configs/demo.py:maskgit --workdir out/maskgit --from out/ctvit
    python -m launch.train --config configs/demo.py:superres --workdir out/superres \\
        --from out/ctvit --from out/maskgit loop.steps=2000 optimizer.learning_rate=1e-4

`--from` takes training folders and model folders, `field=value` changes the configuration.
`data.folder=FOLDER` trains on what `launch.prepare` wrote; without it one process renders the
phantom as it goes. Running the same command again resumes. Ctrl-C, SIGTERM and SIGHUP save first:
the exit code is 0 if the run reached its last step, 75 if it was stopped before, 2 if something was
refused.
"""

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gct_jax.errors import ConfigError, UnfinishedError
from gct_jax.runtime.exit_codes import exit_code
from gct_jax.runtime.stopping import deferred
from launch.extras import require_extras
from launch.options import add_config_options, load_config, prepare_command

if TYPE_CHECKING:
    from gct_jax.training.config import TrainConfig
    from gct_jax.training.loop import Stage
    from gct_jax.training.stages import Components
    from launch.arrays import Cases
    from launch.shard_data import Shards


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line for input that cannot be used."""
    parser = argparse.ArgumentParser(prog="launch.train", description="Train one stage.")
    add_config_options(parser)
    parser.add_argument("--workdir", required=True, type=Path)
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
    options = parser.parse_intermixed_args(arguments)

    def command() -> None:
        require_extras("train")
        run(options)

    return exit_code("launch.train", command)


def run(options: argparse.Namespace) -> None:
    """Load, check, open the data, train.

    Raises:
      GctError: something was refused; nothing was written.
      UnfinishedError: the run was stopped before its last step, and saved.
    """
    config = load_config(options.config, options.overrides)

    import dataclasses

    with deferred():
        from gct_jax.components import check_components_fit
        from gct_jax.runtime.numerics import fix_numerics, require_devices
        from gct_jax.training.loop import fitting_mesh
        from gct_jax.training.run_folder import check_resume, run_inputs
        from gct_jax.training.stages import join_components, make_stage
        from launch.data import check_data

    fix_numerics("launch.train")
    if options.multi_host is not None:
        connect(options.multi_host)
    require_devices()
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
    stage = make_stage(config)
    fitting_mesh(config.loop)
    prepare = prepare_command(options)
    cases = check_data(config, components, prepare)
    inputs = run_inputs(config, components.provenance)
    with alone_in(options.workdir):
        check_resume(options.workdir, config, inputs, options.accept_changes)
        step = train_in(options.workdir, config, components, stage, inputs, cases, prepare)
    if step < config.loop.steps:
        raise UnfinishedError(
            f"stopped at step {step} of {config.loop.steps} and saved; "
            "run the same command to go on"
        )


def alone_in(workdir: Path) -> contextlib.AbstractContextManager:
    """The folder's lock, which the first process takes for all."""
    import jax

    from gct_jax.runtime.lock import locked

    return locked(workdir) if jax.process_index() == 0 else contextlib.nullcontext()


def train_in(
    workdir: Path,
    config: "TrainConfig",
    components: "Components",
    stage: "Stage",
    inputs: dict,
    cases: "Cases | Shards",
    prepare: str,
) -> int:
    """Open the data and train in a folder that no other run uses.

    Returns:
      The step that was reached.
    """
    import jax

    from gct_jax.training.loop import train
    from gct_jax.training.run_folder import record_run, write_status
    from launch.data import stage_data
    from launch.samples import SAMPLERS, sample_function

    data = stage_data(config, cases, workdir, components, prepare)

    def on_change(status: str, step: int) -> None:
        if jax.process_index() == 0:
            if status == "running":
                record_run(workdir, config, inputs)
            write_status(workdir, status, step, config.loop.steps)

    # A sample needs all of the state in one place, which no host of several has.
    draws = config.stage in SAMPLERS and jax.process_count() == 1
    state = train(
        stage,
        config.loop,
        workdir,
        data.batches,
        pretrained=components.variables,
        held_out=data.held_out,
        sample_images=sample_function(config, components, data) if draws else None,
        on_change=on_change,
    )
    return int(state.step)


def connect(where: str) -> None:
    """Join the other processes of the run; `where` is "HOST:PORT,COUNT,INDEX", or "" on a cluster
    that JAX knows.

    Raises:
      ConfigError: the others cannot be found, or not from this text.
    """
    import jax

    form = "--multi-host HOST:PORT,COUNT,INDEX"
    try:
        if where:
            address, count, index = where.split(",")
            jax.distributed.initialize(address, int(count), int(index))
        else:
            jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"cannot join the other processes ({reason}); give {form}") from None


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

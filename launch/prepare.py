"""Prepare what a stage trains on, once, on one machine.

    python -m launch.prepare --config configs/demo.py:ctvit --out out/pool
    python -m launch.prepare --config configs/demo.py:maskgit --from out/ctvit --out out/pool

`--from` names the earlier stages' folders as for `launch.train`, which then takes the result as
`data.folder=out/pool`; several stages may share a folder. `field=value` changes the configuration.
What exists is kept, so the same command resumes.
"""

import argparse
import sys
from pathlib import Path

from gct_jax.runtime.exit_codes import exit_code
from launch.extras import require_extras
from launch.options import add_config_options, load_config


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line for input that cannot be used."""
    parser = argparse.ArgumentParser(
        prog="launch.prepare", description="Prepare what a stage trains on, once."
    )
    add_config_options(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER")
    options = parser.parse_intermixed_args(arguments)

    def command() -> None:
        require_extras("train")
        run(options)

    return exit_code("launch.prepare", command)


def run(options: argparse.Namespace) -> None:
    """Write the arrays that are missing.

    Raises:
      GctError: something was refused, or another process prepares the same folder.
    """
    config = load_config(options.config, options.overrides)

    import dataclasses

    from gct_jax.runtime.stopping import deferred

    with deferred():
        from data_pipelines.shards import Writing
        from gct_jax.components import check_components_fit
        from gct_jax.errors import ConfigError
        from gct_jax.runtime.lock import locked
        from gct_jax.runtime.numerics import fix_numerics, fixed_numerics, require_devices
        from gct_jax.training.stages import join_components
        from launch.arrays import stage_arrays
        from launch.data import check_source

    fix_numerics("launch.prepare")
    require_devices()
    components = join_components(
        config.model, options.sources, allow_unfinished=options.allow_unfinished
    )
    check_components_fit(components.config)
    config = dataclasses.replace(config, model=components.config)
    if config.stage == "t5":
        raise ConfigError("stage t5 reads reports, which need no preparing")
    sources = check_source(config, components).sources
    count = sources[0].cases
    with locked(options.out), fixed_numerics():
        stage_arrays(config, sources, components, Writing(options.out, count))
    print(f"{options.out}: {count} cases for stage {config.stage}; data.folder={options.out}")


if __name__ == "__main__":
    sys.exit(main())

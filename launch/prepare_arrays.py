"""Arrays of a stage's cases in one folder, written by one process without TensorFlow."""

import argparse

from launch.options import load_config


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
        config.model, options.networks, allow_unfinished=options.allow_unfinished
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

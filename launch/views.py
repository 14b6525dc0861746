"""What `launch.prepare --tokens` and `--pairs` begin and end with."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gct_jax.errors import ConfigError
from launch.grids import require_grid
from launch.options import chosen_components

if TYPE_CHECKING:
    from data_pipelines.ledger import Ledger
    from data_pipelines.shard_reader import ShardFolder
    from gct_jax.training.stages import Components


def open_view(
    option: str, folder: Path, options: argparse.Namespace
) -> "tuple[ShardFolder, Components]":
    """Prepared volumes and the networks of --from, which must include a CT-ViT of their grid.

    Raises:
      GctError: they are not, or cannot be read.
    """
    from gct_jax.runtime.stopping import deferred

    with deferred():
        from data_pipelines.shard_reader import ShardFolder
        from gct_jax.runtime.numerics import fix_numerics, require_devices

    fix_numerics("launch.prepare")
    require_devices()
    components = chosen_components(options)
    if "ctvit" not in components.variables:
        raise ConfigError(f"{option} needs CT-ViT: --from its folder")
    volumes = ShardFolder(str(folder))
    if volumes.kind != "volumes":
        raise ConfigError(f"{volumes.path} holds {volumes.kind}, not volumes")
    about = volumes.about
    require_grid(components.config, about["shape"], about["spacing_mm"], volumes.path)
    return volumes, components


def finish(out: Path, ledger: "Ledger") -> None:
    """The manifest when all shards are there, and a line on it."""
    infos: list[Any] = [ledger.info(shard) for shard in ledger.shards]
    left = infos.count(None)
    if left:
        print(f"{out}: {left} shards are missing, of other machines")
        return
    ledger.write_manifest()
    records = sum(info.records for info in infos)
    rejected = sum(len(info.rejected) for info in infos)
    told = f", {rejected} left out" if rejected else ""
    print(f"{out}: {records} records{told}; data.source=shards data.folder={out}")

"""`launch.prepare --pairs`: what super-resolution trains on: some slices of every CT, as CT-ViT
rebuilds them and at full resolution.

The CTs are read once more, from where `--source` read them; slices lie where the prepared volumes
do.
"""

import argparse
import functools
import itertools
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from gct_jax.errors import ConfigError, InputError
from launch.grids import require_grid
from launch.options import chosen_components
from launch.prepare_tokens import finish

BYTES_PER_PIXEL = 1.2  # packed


def run(options: argparse.Namespace) -> None:
    """Write this machine's shards of pairs.

    Raises:
      GctError: something was refused.
    """
    from gct_jax.runtime.stopping import deferred

    with deferred():
        from tqdm import tqdm

        from data_pipelines.derived import derived_ledger
        from data_pipelines.features import pair_features, serialize
        from data_pipelines.shard_reader import ShardFolder
        from gct_jax.provenance import identity
        from gct_jax.runtime.numerics import fix_numerics, fixed_numerics, require_devices
        from gct_jax.training.config import DataConfig

    fix_numerics("launch.prepare")
    require_devices()
    components = chosen_components(options)
    diffusion = components.config.diffusion
    if "ctvit" not in components.variables:
        raise ConfigError("--pairs needs CT-ViT: --from its folder")
    if diffusion is None:
        raise ConfigError("the model of --from has no diffusion, which says how large slices are")
    volumes, per_case = ShardFolder(str(options.pairs)), options.slices_per_case
    made = volumes.about
    require_grid(components.config, made["shape"], made["spacing_mm"], volumes.path)
    about = {
        "kind": "pairs",
        "codec": identity(components.variables["ctvit"]),
        "size": diffusion.image_size,
        "per_case": per_case,
    }
    record_bytes = int(per_case * diffusion.image_size**2 * BYTES_PER_PIXEL)
    ledger = derived_ledger(options.out, volumes, about, record_bytes)
    told = {**volumes.about["data"], "exclude": tuple(volumes.about["data"]["exclude"])}
    data = DataConfig(**told)
    features, missing = pair_features(), ledger.missing((options.shard, options.shards))
    rebuild = rebuilder(components)
    bar = tqdm(total=sum(len(shard.cases) for shard in missing), unit="CT", disable=not missing)
    cases = source_cases(data, made["listing"]) if missing else {}
    with fixed_numerics(), bar:
        for shard in missing:

            def contents(shard: Any = shard) -> Iterator[Any]:
                work = pairs(volumes, shard, data, cases, per_case, diffusion.image_size, options)
                for case, chosen, high in work:
                    bar.update()
                    name = case["case"].item().decode("utf-8")
                    if isinstance(high, str):
                        bar.write(f"left out: {name}: {high}")
                        yield name, high
                        continue
                    low = rebuild(case["volume"])
                    for index, fine in zip(chosen, high, strict=True):
                        example = {
                            "low": low[index][None],
                            "high": fine[None],
                            "report": case["report"].item(),
                            "case": name,
                            "patient": case["patient"].item(),
                        }
                        yield serialize(features, example), {"case": name, "slices": 1}

            ledger.write(shard, contents())
    finish(options, ledger)


def source_cases(data: Any, listing: str) -> dict[str, int]:
    """Numbers of a source's cases by their names in records.

    Raises:
      ConfigError: they are not those that the volumes were prepared from.
    """
    from data_pipelines.preparation import listing_hash, listing_key
    from data_pipelines.prepared_case import case_key
    from data_pipelines.source import open_source

    source = open_source(data)
    if listing_hash(source) != listing:
        raise ConfigError(
            f"the CTs or tables of {data.root or data.source} changed since they were prepared; "
            "prepare the volumes again into another folder"
        )
    key = listing_key(source)
    return {case_key(source, case, key): case for case in range(source.cases)}


def pairs(
    volumes: Any,
    shard: Any,
    data: Any,
    numbers: dict[str, int],
    per_case: int,
    size: int,
    options: argparse.Namespace,
) -> Iterator[tuple[dict, np.ndarray, Any]]:
    """Each case with the slices that were chosen and those at full resolution, or why not."""
    from data_pipelines.derived import read_cases
    from data_pipelines.pool import in_order
    from data_pipelines.preparation import task_of
    from data_pipelines.source import open_source

    source = open_source(data)
    for_tasks, cases = itertools.tee(zip(read_cases(volumes, shard), shard.cases, strict=True))

    def tasks() -> Iterator[tuple]:
        for case, position in for_tasks:
            slices = choose(case, position, per_case)
            number = numbers.get(case["case"].item().decode("utf-8"))
            if number is None:
                yield None, 0, "", ()
            else:
                opened = task_of(source, data, number)
                yield (*opened, case["placement"].item().decode("utf-8"), tuple(slices.tolist()))

    fine = in_order(functools.partial(fine_slices, size), tasks(), options.workers)
    for (case, position), high in zip(cases, fine, strict=True):
        told = high if case["report"].item() else "no report"
        yield case, choose(case, position, per_case), told


def choose(case: dict, position: int, count: int) -> np.ndarray:
    """Slices of a case: random ones, each once while there are enough."""
    depth = case["volume"].shape[0]
    return np.sort(np.resize(np.random.default_rng(position).permutation(depth), count))


def fine_slices(
    size: int, source: Any, number: int, placement: str, slices: tuple[int, ...]
) -> np.ndarray | str:
    """int16 HU [slices, size, size] of a case where its volume was placed, or why not."""
    from data_pipelines.cases import ListedSource
    from data_pipelines.checks import checked_volume
    from data_pipelines.preparation import opened_once
    from gct_jax.volumes.placement import Placement, on_grid

    if source is None:
        return "the source has no such case any more"
    placed = Placement.from_json(json.loads(placement)).grid
    depth, height, width = placed.shape
    slice_mm, row_mm, column_mm = placed.spacing_mm
    spacing = (slice_mm, row_mm * height / size, column_mm * width / size)
    fine = placed.regrid((depth, size, size), spacing)
    try:
        if isinstance(source, ListedSource):
            return on_grid(source.read(number), fine, slices)
        opened = opened_once(source)
        return np.asarray(checked_volume(opened, "source", number, fine))[list(slices)]
    except (InputError, ConfigError) as error:
        return str(error)


def rebuilder(components: Any) -> Any:
    """A volume [d, h, w, 1] in [-1, 1] -> CT-ViT's reconstruction, int16 HU [d, h, w]."""
    import jax

    from gct_jax.components import build_component
    from gct_jax.volumes.intensity import to_int16_hu

    module: Any = build_component(components.config, "ctvit")
    variables = components.variables["ctvit"]
    function = jax.jit(lambda volume: module.apply(variables, volume[None]).reconstruction)
    return lambda volume: to_int16_hu(function(volume)[0, ..., 0])

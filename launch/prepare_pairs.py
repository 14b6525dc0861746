"""`launch.prepare --pairs`: what super-resolution trains on: some slices of every CT, as CT-ViT
rebuilds them and at full resolution.

The CTs are read once more, from where `--source` read them; slices lie where the prepared volumes
do.
"""

import argparse
import functools
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from gct_jax.errors import ConfigError, InputError
from launch.grids import finer_grid
from launch.prepare_tokens import NO_REPORT
from launch.views import finish, open_view

BYTES_PER_PIXEL = 1.2  # packed


def run(options: argparse.Namespace) -> None:
    """Write this machine's shards of pairs.

    Raises:
      GctError: something was refused.
    """
    volumes, components = open_view("--pairs", options.pairs, options)

    from data_pipelines.derived import derived_ledger, text_of
    from data_pipelines.features import pair_features, serialize
    from gct_jax.provenance import identity
    from gct_jax.runtime.numerics import fixed_numerics
    from gct_jax.training.config import DataConfig

    diffusion = components.config.diffusion
    if diffusion is None:
        raise ConfigError("the model of --from has no diffusion, which says how large slices are")
    size, per_case = diffusion.image_size, options.slices_per_case
    about = {
        "kind": "pairs",
        "codec": identity(components.variables["ctvit"]),
        "size": size,
        "per_case": per_case,
    }
    ledger = derived_ledger(options.out, volumes, about, int(per_case * size**2 * BYTES_PER_PIXEL))
    missing = ledger.missing((options.shard, options.shards))
    told = volumes.about["data"]
    data = DataConfig(**{**told, "exclude": tuple(told["exclude"])})
    features, rebuild = pair_features(), rebuilder(components)

    def entries(found: tuple[dict, np.ndarray, Any]) -> Iterator[tuple[Any, Any]]:
        case, chosen, high = found
        name = text_of(case, "case")
        if isinstance(high, str):
            tqdm.write(f"left out: {name}: {high}", file=sys.stderr)
            yield name, high
            return
        low = rebuild(case["volume"])
        for index, fine in zip(chosen, high, strict=True):
            example = {
                "low": low[index][None],
                "high": fine[None],
                "report": text_of(case, "report"),
                "case": name,
                "patient": text_of(case, "patient"),
            }
            yield serialize(features, example), {"case": name, "slices": 1}

    with fixed_numerics():
        pairs = read_pairs(volumes, missing, data, per_case, size, options.workers)
        ledger.write_all(missing, pairs, entries, "pairs")
    finish(options.out, ledger)


def read_pairs(
    volumes: Any, shards: Sequence[Any], data: Any, per_case: int, size: int, workers: int
) -> Iterator[tuple[dict, np.ndarray, Any]]:
    """Each case of the shards with the slices that were chosen and those at full resolution, or why
    not.

    Raises:
      ConfigError: the source's cases are not those that the volumes were prepared from.
    """
    from data_pipelines.derived import read_cases, text_of
    from data_pipelines.pool import in_order
    from data_pipelines.preparation import listing_identity, numbers_by_key, task_of
    from data_pipelines.source import open_source

    if not shards:
        return
    source = open_source(data)
    identity = listing_identity(source)
    if identity.hash != volumes.about["listing"]:
        raise ConfigError(
            f"the CTs or tables of {data.root or data.source} changed since they were prepared; "
            "prepare the volumes again into another folder"
        )
    numbers = numbers_by_key(source, identity.key)

    def chosen() -> Iterator[tuple[dict, np.ndarray]]:
        positions = itertools.chain.from_iterable(shard.cases for shard in shards)
        for case, position in zip(read_cases(volumes, shards), positions, strict=True):
            yield case, choose(case, position, per_case)

    cases, for_tasks = itertools.tee(chosen())
    tasks = (
        (
            *task_of(source, data, numbers[text_of(case, "case")]),
            text_of(case, "placement"),
            tuple(slices.tolist()) if text_of(case, "report") else (),
        )
        for case, slices in for_tasks
    )
    fine = in_order(functools.partial(fine_slices, size), tasks, workers)
    for (case, slices), high in zip(cases, fine, strict=True):
        yield case, slices, high


def choose(case: dict, position: int, count: int) -> np.ndarray:
    """Slices of a case: random ones, each once while there are enough."""
    depth = case["volume"].shape[0]
    return np.sort(np.resize(np.random.default_rng(position).permutation(depth), count))


def fine_slices(
    size: int, source: Any, number: int, placement: str, slices: tuple[int, ...]
) -> np.ndarray | str:
    """int16 HU [slices, size, size] of a case where its volume was placed, or why
    not. A case without a report has no slices."""
    from data_pipelines.cases import ListedSource
    from data_pipelines.checks import checked_volume
    from data_pipelines.preparation import opened_once
    from gct_jax.volumes.placement import Placement, on_grid

    if not slices:
        return NO_REPORT
    fine = finer_grid(Placement.from_json(json.loads(placement)).grid, size)
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

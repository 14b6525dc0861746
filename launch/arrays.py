"""What a stage trains on, case by case: volumes, their tokens, slices at two resolutions.

`launch.prepare` writes these arrays, `launch.train` reads them or makes them in memory; which of it
is the business of the `Keep` they are asked from (`data_pipelines.shards`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from data_pipelines.batches import unit_intensity
from data_pipelines.checks import checked_volume, split_cases
from data_pipelines.shards import Arrays, Keep, smallest_id_type
from data_pipelines.source import Source, open_source
from gct_jax.components import build_component
from gct_jax.errors import ConfigError
from gct_jax.provenance import identity
from gct_jax.training.config import TrainConfig
from gct_jax.training.stages import Components
from gct_jax.volumes.grid import Grid
from gct_jax.volumes.intensity import to_int16_hu
from launch.grids import high_grid, low_grid

PREFIXES = ("", "counterfactual-")  # of the arrays of a case's rows


class Cases(NamedTuple):
    """A configuration's cases, opened once: opening may read every header of a data set.

    sources: of a case's rows: the patient and, if the stage wants it, the counterfactual.
    training, held_out: case numbers.
    """

    sources: list[Source]
    training: list[int]
    held_out: list[int]


def open_cases(config: TrainConfig) -> Cases:
    """The cases of `config.data` as the stage wants them.

    Raises:
      ConfigError: no such source, splits that cannot be used, or no counterfactuals where the stage
        needs them, or those of other patients.
    """
    source, name = open_source(config.data), config.data.source
    sources = [source]
    if getattr(getattr(config, config.stage), "counterfactual_pairs", False):
        other = source.counterfactual()
        if other is None:
            raise ConfigError(
                f"{config.stage}.counterfactual_pairs needs the same patients with other findings, "
                f"which data.source {name} does not have"
            )
        for case in range(source.cases):
            if case >= other.cases or source.patient(case) != other.patient(case):
                raise ConfigError(
                    f"data.source {name}: case {case} and its counterfactual are not of one patient"
                )
        sources.append(other)
    return Cases(sources, *split_cases(source, name))


def stage_arrays(
    config: TrainConfig, sources: Sequence[Source], components: Components, keep: Keep
) -> list[Arrays]:
    """The arrays of a stage. For "ctvit" int16 volumes [d, h, w] of each row source; for "maskgit"
    token ids [t, h, w] of each; for "superres" int16 slices [k, h, w] as the codec rebuilds them
    and [k, H, W] at full resolution; for "t5" none."""
    if config.stage == "t5":
        return []
    volumes = [
        _volumes(config, source, prefix, keep)
        for source, prefix in zip(sources, PREFIXES, strict=False)
    ]
    if config.stage == "maskgit":
        codec = _Codec(config, components)
        return [
            codec.tokens(of, prefix, keep) for of, prefix in zip(volumes, PREFIXES, strict=False)
        ]
    if config.stage == "superres":
        return _Codec(config, components).slices(sources[0], volumes[0], keep)
    return volumes


def _volumes(config: TrainConfig, source: Source, prefix: str, keep: Keep) -> Arrays:
    """Volumes on the model's grid, int16 in HU."""
    grid = low_grid(config.model)
    name = f"{prefix}volumes-{grid.shape[0]}x{grid.shape[1]}"
    (volumes,) = keep(
        (name,),
        lambda case: [checked_volume(source, config.data.source, case, grid)],
        _about(config, low=grid),
    )
    return volumes


def _about(config: TrainConfig, codec: str = "", **grids: Grid) -> dict[str, Any]:
    """What arrays are made from, as `Keep` records it."""
    about: dict[str, Any] = {"source": config.data.source}
    for name, grid in grids.items():
        about |= {f"{name}_shape": grid.shape, f"{name}_spacing_mm": grid.spacing_mm}
    return about | ({"codec": codec} if codec else {})


class _Codec:
    """The trained codec, and what it makes of volumes."""

    def __init__(self, config: TrainConfig, components: Components):
        self._config = config
        self._variables = components.variables["ctvit"]
        self._module = build_component(config.model, "ctvit")
        self._hash = identity(self._variables)
        self._tag = self._hash[:8]  # names what was made with these weights

    def tokens(self, volumes: Arrays, prefix: str, keep: Keep) -> Arrays:
        """Token ids in the smallest type that holds them."""
        assert self._config.model.ctvit is not None  # its variables are there
        dtype = smallest_id_type(self._config.model.ctvit.codebook_size)

        @jax.jit
        def encode(volume: jax.Array) -> Any:
            return self._module.apply(self._variables, volume[None], method="encode")[0]

        def make(case: int) -> list[Any]:
            return [encode(unit_intensity(volumes(case))).astype(dtype)]

        about = _about(self._config, self._hash, low=low_grid(self._config.model))
        (tokens,) = keep((f"{prefix}tokens-{self._tag}",), make, about)
        return tokens

    def slices(self, source: Source, volumes: Arrays, keep: Keep) -> list[Arrays]:
        """Some random slices of each case, rebuilt at low resolution, and at full resolution."""
        config, grid = self._config, high_grid(self._config.model)

        @jax.jit
        def rebuild(volume: jax.Array) -> Any:
            rebuilt: Any = self._module.apply(self._variables, volume[None])
            return rebuilt.reconstruction[0, ..., 0]

        def make(case: int) -> list[Any]:
            chosen = np.random.default_rng(case).permutation(config.model.volume.slices)
            chosen = chosen[: config.data.slices_per_case]
            low_hu = to_int16_hu(rebuild(unit_intensity(volumes(case))))
            high = checked_volume(source, config.data.source, case, grid)
            return [low_hu[chosen], high[chosen]]

        about = _about(config, self._hash, low=low_grid(config.model), high=grid)
        about["slices_per_case"] = config.data.slices_per_case
        return keep((f"low-{self._tag}", f"high-{self._tag}"), make, about)

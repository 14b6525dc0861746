"""Where cases come from: the one seam between a data set and everything that trains or evaluates.

A source is a Python class in a file of its own and a row of `SOURCES`; one that lives elsewhere is
named as "MODULE:CLASS" in `data.source`. It is built with the `DataConfig`.
"""

import importlib
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from gct_jax.errors import ConfigError
from gct_jax.training.config import DataConfig
from gct_jax.volumes.grid import Grid

if TYPE_CHECKING:
    import jax

SOURCES = {
    "phantom": "data_pipelines.phantom.source:PhantomSource",
    "ct_rate": "data_pipelines.ct_rate:CTRateSource",
    "folder": "data_pipelines.folder:FolderSource",
    "generatect": "data_pipelines.generatect.source:GenerateCTSource",
}
TRAINING, HELD_OUT = "training", "held_out"


class Source(Protocol):
    """Cases 0 ... `cases` - 1. What a method returns depends on its arguments alone.

    Attributes:
      cases: how many there are.
      rendered: whether a case is computed rather than read. A single process may train on such
        cases without preparing them.
    """

    cases: int
    rendered: bool

    def volume_hu(self, case: int, grid: Grid) -> "np.ndarray | jax.Array":
        """The CT on a grid: int16 [depth, height, width] in HU."""

    def report(self, case: int, rng: np.random.Generator) -> str:
        """The report; a source that knows several wordings draws one."""

    def labels(self, case: int) -> np.ndarray | None:
        """int8 [18], 1 where an abnormality is present, in CT-RATE's order; None: not known."""

    def attributes(self, case: int, report: str) -> np.ndarray | None:
        """int32 [any], class numbers that a text encoder can learn to read from this wording, -1
        where it is silent; None: the source knows none. The labels will do."""

    def patient(self, case: int) -> str:
        """Whose CT it is: splits and intervals go by patient."""

    def split(self, case: int) -> str:
        """`TRAINING` or `HELD_OUT`."""

    def counterfactual(self) -> "Source | None":
        """The same patients with other findings, case by case; None: there are none."""


# What a class must have to be a source, as the protocol says.
PARTS = [*Source.__annotations__, *(name for name in vars(Source) if not name.startswith("_"))]


def open_source(data: DataConfig) -> Source:
    """The source that a configuration names.

    Raises:
      ConfigError: an unknown name, or what the source says of its options.
    """
    if data.source == "shards":
        raise ConfigError("shards are trained on; a preparation reads CTs from a source")
    path = SOURCES.get(data.source, data.source)
    module, colon, name = path.partition(":")
    if not colon:
        raise ConfigError(
            f"data.source = {data.source!r} is none of {', '.join(SOURCES)} and not of the form "
            "MODULE:CLASS"
        )
    try:
        build = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"data.source = {data.source!r}: {error}") from None
    try:
        source = cast(Source, build(data))
    except TypeError as error:
        raise ConfigError(
            f"data.source = {data.source!r} cannot be built with the DataConfig alone: {error}"
        ) from error
    missing = [part for part in PARTS if not hasattr(source, part)]
    if missing:
        raise ConfigError(
            f"data.source = {data.source!r} has no {', '.join(missing)}; data_pipelines/source.py "
            "says what a source has"
        )
    return source

"""The phantom as a source of cases."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.phantom.attributes import report_attributes
from data_pipelines.phantom.case import (
    Description,
    case_from_findings,
    counterfactual_description,
    sample_description,
)
from data_pipelines.phantom.findings import FINDINGS
from data_pipelines.phantom.render import render
from data_pipelines.phantom.report import write_report
from data_pipelines.source import HELD_OUT, TRAINING
from gct_jax.errors import ConfigError
from gct_jax.training.config import DataConfig
from gct_jax.volumes.grid import Grid, centred_affine


class PhantomSource:
    """Case i is the phantom of seed i; the last `held_out` of them are held out."""

    rendered = True

    def __init__(
        self, data: DataConfig, describe: Callable[[int], Description] = sample_description
    ):
        if data.held_out >= data.cases:
            raise ConfigError(f"data.held_out = {data.held_out} leaves none of {data.cases} cases")
        self.cases = data.cases
        self._data = data
        self._describe = describe

    def volume_hu(self, case: int, grid: Grid) -> jax.Array:
        """int16 [depth, height, width]; JAX may still be computing it.

        Raises:
          ConfigError: a grid that is not centred, or with pixels that are not square.
        """
        require_renderable(grid)
        anatomy = case_from_findings(case, *self._describe(case)).anatomy
        return jnp.round(render(anatomy, grid)).astype(jnp.int16)

    def report(self, case: int, rng: np.random.Generator) -> str:
        """A report in a wording that `rng` draws."""
        return write_report(self._describe(case), rng)

    def labels(self, case: int) -> np.ndarray:
        """int8 [18]."""
        names = [finding.name for finding in self._describe(case).findings]
        return np.isin(FINDINGS, names).astype(np.int8)

    def attributes(self, case: int, report: str) -> np.ndarray:
        """What the wording says of state, place and size of each finding, see `attributes`."""
        del case
        return report_attributes(report)

    def patient(self, case: int) -> str:
        """Every case is a patient of its own."""
        return f"phantom-{case}"

    def split(self, case: int) -> str:
        """The last cases are held out."""
        return TRAINING if case < self.cases - self._data.held_out else HELD_OUT

    def counterfactual(self) -> "PhantomSource":
        """The patients with the findings of `counterfactual_description`."""
        return type(self)(self._data, counterfactual_description)


def require_renderable(grid: Grid) -> None:
    """Raise ConfigError unless the phantom can be rendered on the grid."""
    _, height_mm, width_mm = grid.spacing_mm
    centred = np.allclose(grid.affine, centred_affine(grid.shape, grid.spacing_mm), atol=1e-3)
    if not centred or abs(height_mm - width_mm) > 1e-6:
        raise ConfigError("the phantom is rendered on centred grids with square pixels only")

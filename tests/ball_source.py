"""A source for tests: bright balls, because the phantom's renderer takes seconds to compile."""

import numpy as np

from data_pipelines.phantom.source import PhantomSource


class Balls(PhantomSource):
    """Reports, labels and splits of the phantom; a volume holds a ball of the case's size."""

    def volume_hu(self, case, grid):
        steps = (
            (np.arange(count) - (count - 1) / 2) * spacing
            for count, spacing in zip(grid.shape, grid.spacing_mm, strict=True)
        )
        squares = sum(axis**2 for axis in np.meshgrid(*steps, indexing="ij"))
        return np.where(squares < (60 + 10 * (case % 9)) ** 2, 40, -900).astype(np.int16)


class Plain(Balls):
    """What most data sets are: no other findings of the same patients, no attributes."""

    def attributes(self, case, report):
        return None

    def counterfactual(self):
        return None

"""Processes of one run that are asked to stop by signals stop after the same step.

A signal may reach one process only. Each process tells the compiled step whether it was asked, the
step finds out whether any was, and all read the answer of the same step.
"""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gct_jax.sharding import AXES, global_array

ASKED = "asked"  # the answer's name among a step's metrics


class Agreement:
    """What one process asks and learns, step by step."""

    def __init__(self, mesh: Mesh):
        self._sharding = NamedSharding(mesh, P(AXES))
        self._devices = mesh.size
        self._several = jax.process_count() > 1
        self._before: jax.Array | None = None

    def ask(self, asked: bool) -> jax.Array:
        """bool [devices] for the step: `asked` on the devices of this process."""

        def part(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(self._devices)
            return np.full(stop - start, asked)

        return global_array((self._devices,), self._sharding, part)

    def agreed(self, asked: bool, answer: jax.Array) -> bool:
        """Whether to stop after this step: of one process, whether it is asked now; of several,
        whether any was at the step before, which has been computed.

        answer: of this step.
        """
        before, self._before = self._before, answer
        if not self._several:
            return asked
        return before is not None and bool(before)

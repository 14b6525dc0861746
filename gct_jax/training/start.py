"""Where a run goes on from: the newest checkpoint, or an earlier one."""

import dataclasses
from collections.abc import Sequence

import jax

from gct_jax.errors import ConfigError
from gct_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class StartFrom:
    """The newest checkpoint, unless one of these says otherwise.

    Attributes:
      exactly: the checkpoint of this step; 0: any.
      before_newest: the one before the newest, from which the run went wrong.
      falls: how often the run has gone back by itself. Its draws change with it, else it would take
        the same way again.
    """

    exactly: int = 0
    before_newest: bool = False
    falls: int = 0

    def step(self, saved: Sequence[int]) -> int | None:
        """Which of the steps that are saved, the oldest first; None: the newest whole one.

        Raises:
          ConfigError: the run is to go back and there is nothing to go back to.
        """
        if self.exactly:
            return self.exactly
        if not self.before_newest:
            return None
        if len(saved) < 2:
            raise ConfigError(
                "the run has failed twice at the same step and no earlier checkpoint is left; "
                "start anew with a lower optimizer.learning_rate, or with optimizer.spike_factor=10"
            )
        return saved[-2]

    def rekeyed(self, state: TrainState) -> TrainState:
        """The state with the run's key changed by this fall, if it goes back by itself."""
        if not self.before_newest:
            return state
        return state.replace(key=jax.random.fold_in(state.key, self.falls))


NEWEST = StartFrom()

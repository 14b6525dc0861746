"""Which checkpoints stay: the latest, and one from before whatever may have gone wrong since.

Weights can be absurd and yet finite. An evaluation at step e with loss l is sane if

    l <= b + RISE |b|,   b the smallest loss of an evaluation so far                         (1)

Besides the latest checkpoints the newest one with a step <= the last sane e stays, or, as long as
no evaluation was sane, the oldest.
"""

import math
from collections.abc import Sequence
from typing import Any

from orbax.checkpoint.checkpoint_managers import PreservationPolicy

RISE = 1.0


class Trust:
    """What the evaluations of a run have shown. `best`: their smallest loss, None before the first.
    `step`: of the last sane one, -1 before the first."""

    def __init__(self) -> None:
        self.best: float | None = None
        self.step = -1

    def evaluated(self, step: int, loss: float) -> bool:
        """Take in an evaluation; whether it is sane, by equation (1)."""
        sane = math.isfinite(loss) and (
            self.best is None or loss <= self.best + RISE * abs(self.best)
        )
        if sane:
            self.best = loss if self.best is None else min(self.best, loss)
            self.step = max(self.step, step)
        return sane

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {"best": self.best, "step": self.step}

    def load(self, values: Any) -> None:
        """Continue from what `to_dict` gave; else, as of an older checkpoint, begin."""
        if not isinstance(values, dict):
            return
        best, step = values.get("best"), values.get("step")
        self.best = float(best) if isinstance(best, (int, float)) else None
        self.step = step if isinstance(step, int) else -1


class LatestAndTrusted(PreservationPolicy):
    """See the module's first lines."""

    def __init__(self, latest: int, trust: Trust):
        self._latest, self._trust = latest, trust

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Whether each of the checkpoints, oldest first, stays."""
        steps = [info.step for info in checkpoints]
        trusted = max(
            (step for step in steps if step <= self._trust.step), default=min(steps, default=0)
        )
        return [step in steps[-self._latest :] or step == trusted for step in steps]

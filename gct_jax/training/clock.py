"""Where a run's wall time goes, and how fast it is."""

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Seconds since the last `read`, by what they were spent on.

    Args:
      rows: of a batch.
      step_flops: operations of a step in the model's matrix products and convolutions, on all
        devices together; None: unknown.
      peak_flops: what the devices could do at most in a second, together; None: unknown.
    """

    def __init__(self, rows: int, step_flops: float | None = None, peak_flops: float | None = None):
        self._rows, self._step_flops, self._peak_flops = rows, step_flops, peak_flops
        self._since = time.perf_counter()
        self._spent: dict[str, float] = {}

    @contextlib.contextmanager
    def on(self, purpose: str) -> Iterator[None]:
        """Count the body's seconds as spent on "data", "save" or "evaluate"."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self._spent[purpose] = self._spent.get(purpose, 0.0) + spent

    def read(self, steps: int) -> dict[str, float]:
        """Metrics of the `steps` steps since the last call.

        "seconds_per_step" is the wall time of a step but for evaluation and saving; of it the loop
        waited "seconds/data" for the batch. "seconds/save" and "seconds/evaluate" are of all the
        steps together. "rows_per_second" is of the global batch. "model_flop_utilisation" is the
        share of the peak that the model's own operations made use of.
        """
        now = time.perf_counter()
        spent, self._spent = self._spent, {}
        apart = {name: spent.get(name, 0.0) for name in ("save", "evaluate")}
        seconds = max(now - self._since - sum(apart.values()), 1e-9) / steps
        self._since = now
        metrics = {
            "seconds_per_step": seconds,
            "seconds/data": spent.get("data", 0.0) / steps,
            **{f"seconds/{name}": value for name, value in apart.items()},
            "rows_per_second": self._rows / seconds,
        }
        if self._step_flops:
            metrics["tflop_per_second"] = self._step_flops / seconds / 1e12
            if self._peak_flops:
                share = self._step_flops / seconds / self._peak_flops
                metrics["model_flop_utilisation"] = share
        return metrics

"""A trace of a few steps, for TensorBoard's profiler or Perfetto."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import jax

STEPS = 5  # that are traced


class Profile:
    """Traces the steps from `first` on into `folder`; 0: none."""

    def __init__(self, folder: Path, first: int):
        self._folder, self._first = folder, first
        self._tracing = False

    @contextlib.contextmanager
    def of(self, step: int) -> Iterator[None]:
        """The body is step `step`."""
        if not self._first or step < self._first:
            yield
            return
        if step == self._first:
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield
        if step == self._first + STEPS - 1:
            self._stop()

    def _stop(self) -> None:
        if self._tracing:
            self._tracing = False
            jax.effects_barrier()
            jax.profiler.stop_trace()

    def __enter__(self) -> "Profile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

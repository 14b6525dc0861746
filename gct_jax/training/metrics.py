"""Metrics on disk: one JSON object per line, always, and TensorBoard event files."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import PyTree
from PIL import Image
from tensorboardX import SummaryWriter

from gct_jax.errors import GctError
from gct_jax.runtime.files import replace_when_done
from gct_jax.training.overview import parameter_table, state_table
from gct_jax.training.state import TrainState


class NotFiniteError(GctError):
    """A metric of a step is not finite."""

    def __init__(self, name: str, value: float, step: int):
        super().__init__(f"training stopped: {name} is {value} at step {step}")
        self.step = step

    def advised(self, cases: str) -> "NotFiniteError":
        """The same with the batch's cases and what to do."""
        batch = f" (its batch: {cases})" if cases else ""
        self.args = (
            f"{self}{batch}; run the same command again, and if it fails there again it goes back "
            "to an earlier checkpoint by itself; or choose one by loop.resume_step, lower "
            "optimizer.learning_rate, or set optimizer.spike_factor=10",
        )
        return self


class MetricsWriter:
    """Appends to `folder/metrics.jsonl` and `folder/tensorboard`, images to `folder/samples`; does
    nothing where `active` is False (all processes but one).

    A resumed run starts at `start_step`; what an interrupted run wrote beyond it is dropped, so
    every step appears once.
    """

    def __init__(self, folder: Path, start_step: int, active: bool = True):
        self._active = active
        if not active:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        path = folder / "metrics.jsonl"
        if path.exists():
            _cut(path, start_step)
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write one line for `step`."""
        if not self._active:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def tables(self, state: TrainState, shardings: PyTree) -> None:
        """Print what a state is made of, and write each parameter's line to `parameters.txt`."""
        if not self._active:
            return
        print(state_table(state, shardings), file=sys.stderr)
        with replace_when_done(self._folder / "parameters.txt") as path:
            path.write_text(parameter_table(state, shardings) + "\n", encoding="utf-8")

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Write uint8 images [height, width] or [height, width, 3] as PNG and to TensorBoard."""
        if not self._active:
            return
        folder = self._folder / "samples"
        folder.mkdir(exist_ok=True)
        for name, image in images.items():
            with replace_when_done(folder / f"{step:07d}_{name}.png") as path:
                Image.fromarray(image).save(path)
            self._board.add_image(name, image, step, dataformats="HW" if image.ndim == 2 else "HWC")

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._active:
            self._file.close()
            self._board.close()


def _cut(path: Path, start_step: int) -> None:
    """Drop the lines beyond `start_step`, and those that a kill left half-written."""
    lines = path.read_bytes().decode("utf-8", "replace").splitlines()
    kept = [line for line in lines if _step(line) is not None and _step(line) <= start_step]
    with replace_when_done(path) as temporary:
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


def _step(line: str) -> Any:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None


def mean_metrics(
    window: Sequence[tuple[int, Mapping[str, Any]]], weights: Sequence[float] | None = None
) -> dict[str, float]:
    """Mean of each metric over `window`, pairs (step, metrics); each counts as `weights` say.

    Raises:
      NotFiniteError: a value is not finite.
    """
    for step, metrics in window:
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise NotFiniteError(name, float(value), step)
    names = window[-1][1]
    return {
        name: float(np.average([metrics[name] for _, metrics in window], weights=weights))
        for name in names
    }

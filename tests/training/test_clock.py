"""Where the time of a step goes, and shares of a peak."""

import time

import jax
import pytest

from gct_jax.chips import CHIPS, chip, peak_flops
from gct_jax.training.clock import Clock


def test_seconds_are_told_apart(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = Clock(rows=8, step_flops=4e12, peak_flops=8e12)
    for _ in range(2):
        with clock.on("data"):
            now[0] += 1
        now[0] += 3
    with clock.on("save"):
        now[0] += 10
    with clock.on("evaluate"):
        now[0] += 20
    assert clock.read(2) == pytest.approx(
        {
            "seconds_per_step": 4,
            "seconds/data": 1,
            "seconds/save": 10,
            "seconds/evaluate": 20,
            "rows_per_second": 2,
            "tflop_per_second": 1,
            "model_flop_utilisation": 0.125,
        }
    )
    now[0] += 5
    assert clock.read(1)["seconds_per_step"] == 5


def test_an_unknown_device_has_no_peak():
    assert peak_flops(jax.devices()) is None
    assert chip("NVIDIA H100 80GB HBM3") == CHIPS["NVIDIA H100"]
    assert chip("TPU v5 lite") == CHIPS["TPU v5 lite"] and chip("TPU v9") is None
    metrics = Clock(rows=8, step_flops=1e9, peak_flops=None).read(1)
    assert "model_flop_utilisation" not in metrics and metrics["tflop_per_second"] > 0

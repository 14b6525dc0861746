"""The regression against its own optimality condition; the fit on measurements made up."""

import numpy as np
import pytest

from data_pipelines.phantom.case import Description
from data_pipelines.phantom.chest_measurements import Measurements
from data_pipelines.phantom.detector_fit import DECAY, fit, logistic_regression, sides_of_all
from data_pipelines.phantom.detectors import (
    SHIPPED,
    SIDED,
    Weights,
    both_sides,
    load_weights,
    read,
)
from data_pipelines.phantom.findings import FINDINGS, Finding

EFFUSION, HERNIA = "Pleural effusion", "Hiatal hernia"


@pytest.mark.parametrize("intercept", [True, False])
def test_the_gradient_vanishes_at_the_weights(intercept):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(400, 5))
    y = rng.random(400) < 1 / (1 + np.exp(-(2 * z[:, 0] - z[:, 3] + 0.5)))
    w, b = logistic_regression(z, y, intercept)
    error = 1 / (1 + np.exp(-(z @ w + b))) - y
    np.testing.assert_allclose(z.T @ error / 400 + DECAY * w, 0, atol=1e-4)
    assert abs(error.mean()) < 1e-4 if intercept else b == 0
    assert w[0] > 3 * abs(w[1]) and w[3] < 0


def made_up(cases=200):
    """Left fluid raises measurement 1 on the left; a hernia raises measurement 0 of the midline."""
    rng = np.random.default_rng(1)
    right, left, midline = (rng.normal(size=(cases, n)) for n in (4, 4, 3))
    rows = []
    for number in range(cases):
        findings = []
        if number % 3:
            side = ("left", "right", "bilateral")[number % 7 % 3]
            findings.append(Finding(EFFUSION, side))
            left[number, 1] += 6 * (side != "right")
            right[number, 1] += 6 * (side != "left")
        if number % 5 == 0:
            findings.append(Finding(HERNIA))
            midline[number, 0] += 6
        rows.append(Description(60, "male", tuple(findings)))
    return Measurements(*(part.astype(np.float32) for part in (right, left, midline))), rows


def test_fit_finds_what_a_finding_changes_and_its_side():
    measured, rows = made_up()
    weights = fit(measured, rows)
    scores, evidence = read(weights, measured)
    for name in (EFFUSION, HERNIA):
        present = np.array([any(f.name == name for f in row.findings) for row in rows])
        score = scores[:, FINDINGS.index(name)]
        assert np.mean((score > 0) == present) > 0.97
    sides = sides_of_all(rows, EFFUSION)
    assert {*sides} == {None, "left", "right"}
    told = [
        (evidence[number, SIDED.index(EFFUSION)] > 0) == (side == "left")
        for number, side in enumerate(sides)
        if side
    ]
    assert np.mean(told) > 0.97


def test_exchanged_sides_change_only_the_sign_of_the_difference():
    measured, rows = made_up(40)
    exchanged = Measurements(measured.left, measured.right, measured.midline)
    np.testing.assert_array_equal(both_sides(exchanged), both_sides(measured))
    weights = fit(measured, rows)
    scores, differences = read(weights, measured)
    assert (differences[:, SIDED.index(EFFUSION)] != 0).all()
    mirrored = read(weights, exchanged)
    np.testing.assert_array_equal(mirrored[0], scores)
    np.testing.assert_array_equal(mirrored[1], -differences)


def test_shipped_weights_fit_together():
    weights = load_weights()
    p, m = weights.presence_mean.size, weights.side_spread.size
    assert SHIPPED.stat().st_size < 200_000
    assert [array.shape for array in weights] == [(p,), (p,), (18, p), (18,), (m,), (len(SIDED), m)]
    assert all(array.dtype == np.float32 for array in weights)
    assert isinstance(weights, Weights) and (weights.presence_spread > 0).all()

"""Weights of the detectors: logistic regressions on measurements of rendered phantoms.

For labels y in {0, 1} and standardised measurements z, w and b minimise

    mean log(1 + exp(u)) - y u  +  lambda / 2 |w|^2,    u = w . z + b                      (1)

The side is learnt from cases with the finding on one side only, each also mirrored, without b.
"""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize

from data_pipelines.phantom.case import Case, Description
from data_pipelines.phantom.chest_measurements import Measurements
from data_pipelines.phantom.detectors import SIDED, Weights, both_sides, standardise
from data_pipelines.phantom.findings import FINDINGS

DECAY = 0.02  # lambda; with 0.05 held-out renderings are read worse, with 0.005 hardly better
LEAST_SPREAD = 1e-3
ITERATIONS = 300


def fit(measured: Measurements, descriptions: Sequence[Description]) -> Weights:
    """Weights from measurements [cases, ...] and what is wrong with each case."""
    values = both_sides(measured)
    mean, spread = values.mean(0), values.std(0) + LEAST_SPREAD
    inputs = standardise(values, mean, spread)
    labels = labels_of_all(descriptions)
    presence = [logistic_regression(inputs, labels[:, i]) for i in range(len(FINDINGS))]
    difference = measured.left - measured.right
    side_spread = difference.std(0) + LEAST_SPREAD
    difference = standardise(difference, 0.0, side_spread)
    sides = [_fit_side(difference, sides_of_all(descriptions, name)) for name in SIDED]
    arrays = (
        mean,
        spread,
        [weights for weights, _ in presence],
        [bias for _, bias in presence],
        side_spread,
        sides,
    )
    return Weights(*(np.asarray(array, np.float32) for array in arrays))


def labels_of_all(descriptions: Sequence[Description]) -> np.ndarray:
    """Presence of each of `FINDINGS`, bool [cases, 18]."""
    return np.array([np.isin(FINDINGS, [f.name for f in one.findings]) for one in descriptions])


def sides_of_all(descriptions: Sequence[Case | Description], name: str) -> list[str | None]:
    """For each case "left" or "right" if it has the finding on that side only, else None."""
    sides = [next((f.side for f in one.findings if f.name == name), None) for one in descriptions]
    return [side if side in ("left", "right") else None for side in sides]


def logistic_regression(
    inputs: np.ndarray, labels: Sequence[bool] | np.ndarray, intercept: bool = True
) -> tuple[np.ndarray, float]:
    """Equation (1): w [p] and b, which is 0 without `intercept`; inputs are [cases, p].

    Without cases all are 0, the minimum of what is left of (1).
    """
    if not len(inputs):
        return np.zeros(inputs.shape[1]), 0.0
    y = np.asarray(labels, float)
    z = np.asarray(inputs, float)

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        w, b = point[:-1], point[-1]
        u = z @ w + b
        error = (0.5 * (1 + np.tanh(0.5 * u)) - y) / len(y)  # sigmoid(u) - y
        value = np.mean(np.logaddexp(0, u) - y * u) + 0.5 * DECAY * w @ w
        return value, np.append(z.T @ error + DECAY * w, error.sum() * intercept)

    start = np.zeros(z.shape[1] + 1)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS})
    return found.x[:-1], float(found.x[-1])


def _fit_side(difference: np.ndarray, sides: list[str | None]) -> np.ndarray:
    rows = np.flatnonzero([side is not None for side in sides])
    left = np.array([sides[row] == "left" for row in rows], bool)
    inputs = np.concatenate([difference[rows], -difference[rows]])
    return logistic_regression(inputs, np.concatenate([left, ~left]), intercept=False)[0]

import numpy as np
import pytest

from gct_jax.evaluation.auroc import auroc, auroc_interval


def pairwise(labels, scores):
    """Equation (1) by counting every pair."""
    difference = scores[labels][:, None] - scores[~labels][None, :]
    return np.mean((difference > 0) + 0.5 * (difference == 0))


@pytest.mark.parametrize("seed", range(5))
def test_auroc_counts_pairs_with_ties_as_half(seed):
    rng = np.random.default_rng(seed)
    labels = rng.random(60) < 0.3
    scores = rng.integers(0, 6, 60) + labels  # many ties
    assert auroc(labels, scores) == pytest.approx(pairwise(labels, scores), abs=1e-12)


def test_auroc_is_nan_without_both_classes():
    assert np.isnan(auroc(np.zeros(4, bool), np.arange(4)))
    assert np.isnan(auroc_interval(np.ones(4, bool), np.arange(4), np.random.default_rng(0)).low)


def test_interval_holds_the_value_and_has_the_normal_theory_width():
    rng = np.random.default_rng(1)
    labels = np.arange(400) < 200
    scores = rng.normal(size=400) + labels
    result = auroc_interval(labels, scores, rng, resamples=2000)
    assert result.low < result.value < result.high
    assert result.positives == 200
    # Hanley and McNeil (1982): variance from the exponential approximation.
    a = result.value
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    error = np.sqrt((a * (1 - a) + 199 * (q1 - a * a) + 199 * (q2 - a * a)) / 200**2)
    assert result.high - result.low == pytest.approx(2 * 1.96 * error, rel=0.2)


def test_perfect_separation_has_no_width():
    labels = np.array([False, False, True, True])
    result = auroc_interval(labels, np.array([0.0, 1, 2, 3]), np.random.default_rng(0))
    assert (result.value, result.low, result.high) == (1.0, 1.0, 1.0)

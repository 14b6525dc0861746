"""Area under the ROC curve, with a bootstrap interval.

    AUROC = P(score+ > score-) + P(score+ = score-) / 2                                    (1)

which is the Mann-Whitney U statistic over the number of pairs, computed from mid-ranks.
"""

from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata


class Auroc(NamedTuple):
    """Estimate with its interval; all NaN when one of the classes is empty."""

    value: float
    low: float
    high: float
    positives: int


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Equation (1).

    Args:
      labels: [cases] bool.
      scores: [cases] float, higher means more likely positive.

    Returns:
      A number in [0, 1]; NaN when all labels are equal.
    """
    labels = np.asarray(labels, bool)
    positives = int(labels.sum())
    negatives = labels.size - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    rank_sum = rankdata(scores)[labels].sum()
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * negatives))


def auroc_interval(
    labels: np.ndarray,
    scores: np.ndarray,
    rng: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> Auroc:
    """AUROC with a percentile bootstrap interval.

    Positives and negatives are resampled separately, so that the interval exists however rare
    the finding is.
    """
    labels, scores = np.asarray(labels, bool), np.asarray(scores, np.float64)
    positive, negative = scores[labels], scores[~labels]
    value = auroc(labels, scores)
    if np.isnan(value):
        return Auroc(value, value, value, positive.size)
    drawn = np.concatenate(
        [
            rng.choice(positive, (resamples, positive.size)),
            rng.choice(negative, (resamples, negative.size)),
        ],
        axis=1,
    )  # [resamples, cases]
    ranks = rankdata(drawn, axis=1)[:, : positive.size].sum(axis=1)
    pairs = positive.size * negative.size
    values = (ranks - positive.size * (positive.size + 1) / 2) / pairs
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Auroc(value, float(low), float(high), positive.size)

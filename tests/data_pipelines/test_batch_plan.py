"""The order of batches: epochs, mixtures, depths."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.batch_plan import BatchPlan
from gct_jax.errors import ConfigError


def of(*counts):
    return [np.full(count, 5) for count in counts]


def test_an_epoch_is_a_permutation():
    plan = BatchPlan(of(12), (), 4, seed=3)
    epochs = [[row.case for step in range(3 * e, 3 * e + 3) for row in plan.rows(step)]
              for e in range(3)]  # fmt: skip
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    other = BatchPlan(of(12), (), 4, seed=4)
    assert [row.case for row in other.rows(0)] != [row.case for row in plan.rows(0)]


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(12, 40), min_size=1, max_size=3),
    batch=st.integers(1, 6),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_no_batch_holds_a_case_twice_and_has_one_depth(counts, batch, seed, data):
    depths = [
        np.array(data.draw(st.lists(st.sampled_from([5, 9, 13]), min_size=n, max_size=n)))
        for n in counts
    ]
    weights = data.draw(st.sampled_from([(), tuple(data.draw(st.floats(0.2, 3)) for _ in counts)]))
    plan = BatchPlan(depths, weights, batch, seed)
    for step in [*range(40), 10**6]:
        rows = plan.rows(step)
        assert len(rows) == batch
        assert len({(row.folder, row.case) for row in rows}) == batch
        assert len({row.depth for row in rows}) == 1
        for row in rows:
            assert depths[row.folder][row.case] <= row.depth


def test_weights_hold_in_the_long_run():
    plan = BatchPlan(of(40, 20, 30), (0.5, 0.2, 0.3), 7, seed=0)
    taken = Counter(row.folder for step in range(200) for row in plan.rows(step))
    shares = np.array([taken[k] for k in range(3)]) / (7 * 200)
    np.testing.assert_allclose(shares, (0.5, 0.2, 0.3), atol=5 / 1400)


def test_every_case_of_every_depth_comes_as_often():
    depths = [np.array([5] * 30 + [9] * 20 + [13] * 10)]
    plan = BatchPlan(depths, (), 5, seed=1)
    assert plan.depths == [5, 9, 13]
    seen = Counter(row.case for step in range(1200) for row in plan.rows(step))
    counts = [seen[case] for case in range(60)]
    assert min(counts) >= 0.93 * np.mean(counts) and max(counts) <= 1.07 * np.mean(counts)


def test_a_depth_with_too_few_cases_is_padded_further():
    plan = BatchPlan([np.array([5] * 3 + [9] * 20 + [13])], (), 4, seed=1)
    assert plan.depths == [13]
    assert BatchPlan([np.array([5] * 3 + [9] * 20)], (), 4, seed=1).depths == [9]


def test_what_cannot_be_batched_is_refused():
    with pytest.raises(ConfigError, match="has 3 for training"):
        BatchPlan(of(3), (), 4, seed=0)
    with pytest.raises(ConfigError, match="entries"):
        BatchPlan(of(8, 8), (1.0,), 4, seed=0)

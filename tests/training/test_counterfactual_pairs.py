"""Counterfactual pairs: exchange, weights, and what a batch of them means for MaskGIT's loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from tiny_model import random_variables

from configs import tiny
from gct_jax.config import override
from gct_jax.errors import InputError
from gct_jax.training import counterfactual_pairs, maskgit
from gct_jax.training.state import TrainState

KEY = jax.random.key(0)
CONFIG = override(
    tiny.maskgit(), ["maskgit.counterfactual_pairs=True", "maskgit.counterfactual_weight=2.0"]
)


def batch():
    rng = np.random.default_rng(1)
    return {
        "token_ids": rng.integers(0, 32, (4, 3, 2, 2), dtype=np.int32),
        "text_ids": rng.integers(1, 128, (4, 48), dtype=np.int32),
    }


def test_exchange_swaps_neighbouring_rows_and_undoes_itself():
    rows = jnp.arange(12).reshape(4, 3)
    np.testing.assert_array_equal(
        counterfactual_pairs.exchange(rows), rows[jnp.array([1, 0, 3, 2])]
    )
    np.testing.assert_array_equal(
        counterfactual_pairs.exchange(counterfactual_pairs.exchange(rows)), rows
    )


def test_only_differences_beyond_the_threshold_weigh_more():
    rows = jnp.array([[0.0, 0.0, 0.5], [0.0, 0.02, 0.1]])
    weight = counterfactual_pairs.difference_weight(rows, 3.0, threshold=0.03)
    np.testing.assert_array_equal(weight, [[1, 1, 4], [1, 1, 4]])


@pytest.fixture(scope="module")
def params():
    return {
        component: random_variables(CONFIG.model, component)["params"]
        for component in ("maskgit", "t5")
    }


def test_pairs_share_their_mask(params):
    data = batch()
    exchanged = {
        name: np.asarray(counterfactual_pairs.exchange(jnp.asarray(rows)))
        for name, rows in data.items()
    }

    def loss(config, rows):
        return float(quick_jit(lambda b: maskgit.loss_fn(params, {}, config, b, KEY, 0.0)[0])(rows))

    assert loss(CONFIG, exchanged) == pytest.approx(loss(CONFIG, data), rel=1e-6)
    # with a mask for each row the order of the rows matters
    strangers = tiny.maskgit()
    assert loss(strangers, exchanged) != pytest.approx(loss(strangers, data), rel=1e-4)


def test_text_gain_is_zero_for_pairs_with_one_report_and_not_for_two(params):
    state = TrainState(
        step=jnp.int32(0), key=KEY, params=params, ema=params, opt_state={}, extra={}
    )
    evaluate = quick_jit(lambda rows: maskgit.eval_step(CONFIG, state, rows, KEY)["text_gain"])
    data = batch()
    assert abs(float(evaluate(data))) > 1e-4
    data["text_ids"][1::2] = data["text_ids"][::2]
    assert float(evaluate(data)) == pytest.approx(0, abs=1e-6)


def test_rows_that_are_no_pairs_are_refused():
    with pytest.raises(InputError, match="3 rows are no pairs"):
        counterfactual_pairs.difference_weight(jnp.zeros((3, 2)), 1.0)

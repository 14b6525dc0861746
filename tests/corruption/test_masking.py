"""Masking against recorded reference subsets, closed forms and counting arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from golden_case import GoldenCase
from hypothesis import given, settings
from hypothesis import strategies as st

from gct_jax.corruption import masking


@pytest.fixture(scope="module")
def golden():
    return GoldenCase("maskgit_train").arrays


def test_ratio_and_masked_input_match_golden(golden):
    ids = golden["in__ids"]
    ratio = masking.mask_ratio(golden["in__rand_step"] / 18)
    np.testing.assert_allclose(ratio, golden["out__mask_prob"], atol=1e-6)
    masked = masking.reference_random_subset(
        golden["in__uniforms"], ratio, np.ones((2, 48), bool)
    ).reshape(ids.shape)
    np.testing.assert_array_equal(masked, golden["out__mask_token_mask"].reshape(ids.shape))
    np.testing.assert_array_equal(jnp.where(masked, 64, ids), golden["out__masked_input"])


@pytest.mark.parametrize("variant", ["full", "padded"])
def test_reference_subset_matches_golden(golden, variant):
    subset = masking.reference_random_subset(
        golden["in__subset_uniforms"],
        golden["in__subset_prob"],
        golden[f"in__subset_mask_{variant}"] > 0,
    )
    np.testing.assert_array_equal(subset, golden[f"out__subset_out_{variant}"])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), ratio=st.floats(0, 1))
def test_subset_hides_the_promised_number_of_valid_tokens_only(seed, ratio):
    rng = np.random.default_rng(seed)
    uniforms = rng.random((3, 2, 3, 4), dtype=np.float32)
    valid = rng.random((3, 2, 3, 4)) < 0.6
    valid[:, 0, 0, 0] = True
    subset = np.asarray(masking.random_subset(uniforms, np.full(3, ratio, np.float32), valid))
    assert not np.any(subset & ~valid)
    counts = valid.sum(axis=(1, 2, 3))
    expected = np.maximum(np.round(np.float32(ratio) * counts.astype(np.float32)), 1)
    np.testing.assert_array_equal(subset.sum(axis=(1, 2, 3)), expected)


def test_every_valid_token_is_hidden_equally_often():
    valid = np.arange(10) < 7
    uniforms = np.random.default_rng(0).random((4000, 10), dtype=np.float32)
    subset = masking.random_subset(
        uniforms, np.full(4000, 3 / 7, np.float32), np.tile(valid, (4000, 1))
    )
    observed = np.asarray(subset).sum(axis=0)[valid]
    assert observed.sum() == 4000 * 3
    assert scipy.stats.chisquare(observed).pvalue > 0.001


def test_ratio_levels_are_those_of_the_sampler():
    levels = np.cos(np.pi * np.arange(18) / 36)
    drawn = masking.sample_mask_ratio(jax.random.key(0), 2000, levels=18)
    nearest = np.abs(np.asarray(drawn)[:, None] - levels).argmin(axis=1)
    np.testing.assert_allclose(drawn, levels[nearest], atol=1e-6)
    assert set(nearest) == set(range(18))


def test_continuous_ratio_has_the_arcsine_law():
    drawn = np.asarray(masking.sample_mask_ratio(jax.random.key(1), 4000))
    # r = cos(pi u / 2) with u uniform: P(r <= x) = 1 - 2 arccos(x) / pi.
    test = scipy.stats.kstest(drawn, lambda x: 1 - 2 * np.arccos(np.clip(x, 0, 1)) / np.pi)
    assert test.pvalue > 0.001


def test_loss_matches_golden_logits(golden):
    loss = masking.masked_cross_entropy(
        golden["out__logits"],
        golden["in__ids"].reshape(2, 48),
        golden["out__mask_token_mask"],
    )
    np.testing.assert_allclose(loss, golden["out__loss"], atol=5e-6)


def test_loss_without_hidden_tokens_is_zero():
    zeros = jnp.zeros((1, 4), jnp.int32)
    assert masking.masked_cross_entropy(jnp.ones((1, 4, 5)), zeros, zeros > 0) == 0


def test_critic_matches_golden(golden):
    ids = golden["in__ids"].reshape(2, 48)
    sampled = masking.gumbel_argmax(golden["out__logits"], golden["in__gumbel_uniforms"], 1.0)
    np.testing.assert_array_equal(sampled, golden["out__critic_pred_ids"])
    shown = jnp.where(golden["out__mask_token_mask"], sampled, ids)
    np.testing.assert_array_equal(shown, golden["out__critic_input"].reshape(2, 48))
    labels = masking.critic_labels(sampled, ids)
    np.testing.assert_array_equal(labels, golden["out__critic_labels"])
    loss = masking.critic_loss(golden["out__critic_logits"], labels, np.ones((2, 48), bool))
    np.testing.assert_allclose(loss, golden["out__critic_loss"], atol=5e-6)


def test_labels_never_blame_a_visible_true_token(golden):
    ids = golden["in__ids"]
    labels = np.asarray(masking.critic_labels(golden["out__critic_input"], ids)).reshape(2, 48)
    assert labels[~golden["out__mask_token_mask"]].sum() == 0
    assert labels.sum() > 0


def test_gumbel_argmax_draws_from_the_softmax():
    probabilities = np.array([0.1, 0.2, 0.3, 0.4])
    logits = 2.0 * jnp.log(jnp.tile(probabilities, (4000, 1)))  # temperature 2 undoes the factor
    uniforms = jax.random.uniform(jax.random.key(2), logits.shape)
    counts = np.bincount(masking.gumbel_argmax(logits, uniforms, 2.0), minlength=4)
    assert scipy.stats.chisquare(counts, 4000 * probabilities).pvalue > 0.001


def test_extreme_uniforms_stay_finite():
    extremes = jnp.array([0.0, np.nextafter(np.float32(1), np.float32(0))])
    assert jnp.all(jnp.isfinite(masking.gumbel_noise(extremes)))

"""Which updates are skipped, and what a skipped one leaves as it was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from line_stage import RULES, STAGE, batch_of, batches, leaves

from gct_jax import sharding
from gct_jax.training import loop, spikes
from gct_jax.training.config import LoopConfig


def judged(norms, factor=10.0):
    record, accepted = spikes.new_record(), []
    for norm in norms:
        takes, record = spikes.judge(record, jnp.float32(norm), factor)
        accepted.append(bool(takes))
    return accepted, {name: float(value) for name, value in record.items()}


def test_a_gradient_far_above_the_usual_is_skipped_and_counted():
    usual = np.exp(np.random.default_rng(0).normal(1, 0.3, 80))
    accepted, record = judged([*usual, 60, 2.7, 500])
    assert accepted == [*[True] * 80, False, True, False]
    assert record["skipped"] == 2 and record["accepted"] == 81
    assert record["mean"] == pytest.approx(1, abs=0.15)  # the spikes have no part in it


def test_nothing_is_skipped_before_the_usual_is_known_or_without_a_factor():
    assert all(judged([1] * spikes.LEARNT + [1e6])[0])
    assert all(judged([1] * 100 + [1e6], factor=0.0)[0])


def test_a_change_that_lasts_is_accepted():
    accepted, record = judged([1] * 80 + [100] * 60)
    assert accepted == [True] * 80 + [False] * spikes.IN_A_ROW + [True] * (60 - spikes.IN_A_ROW)
    assert record["mean"] == pytest.approx(np.log(100), rel=1e-3)


def test_a_skipped_step_changes_nothing_but_the_count(monkeypatch, tmp_path):
    monkeypatch.setattr(sharding, "PARAMETER_RULES", RULES)
    monkeypatch.setattr(spikes, "LEARNT", 3)
    states = {}

    def stream(start, bad=6):
        for step, batch in enumerate(batches(start), start):
            yield {**batch, "y": batch["y"] * 1e4} if step == bad else batch

    config = LoopConfig(steps=6, batch_size=8, checkpoint_every=1, keep_checkpoints=9)
    for steps in (6, 7, 8):
        states[steps] = loop.train(
            STAGE,
            LoopConfig(**{**vars(config), "steps": steps}),
            tmp_path,
            stream,
            spike_factor=10.0,
        )
    before, skipped, after = (states[n] for n in (6, 7, 8))
    for old, new in zip(leaves(before)[2:], leaves(skipped)[2:], strict=True):
        np.testing.assert_array_equal(old, new)
    assert int(skipped.step) == 7 and int(skipped.spikes["skipped"]) == 1
    assert int(after.spikes["skipped"]) == 1
    assert np.abs(leaves(after)[2] - leaves(skipped)[2]).max() > 0
    assert np.isfinite(batch_of(0)["y"]).all()
    line = (tmp_path / "metrics.jsonl").read_text().splitlines()[-1]
    assert '"skipped_steps": 1.0' in line
    assert jax.tree.leaves(after.spikes)

"""Which checkpoints stay, and how a run goes back to one."""

import dataclasses
import json

import numpy as np
import pytest
from line_stage import RULES, RUN, STAGE, batches, leaves, run

from configs import tiny
from gct_jax import sharding
from gct_jax.config import to_dict
from gct_jax.errors import ConfigError, GctError
from gct_jax.training import loop, run_folder
from gct_jax.training.retention import LatestAndTrusted, Trust
from gct_jax.training.start import NEWEST, StartFrom


@pytest.fixture(autouse=True)
def parameter_rules(monkeypatch):
    monkeypatch.setattr(sharding, "PARAMETER_RULES", RULES)


def kept(steps, latest, trust):
    infos = [dataclasses.make_dataclass("Info", ["step"])(step) for step in steps]
    stays = LatestAndTrusted(latest, trust).should_preserve(infos, context=None)
    return [step for step, stay in zip(steps, stays, strict=True) if stay]


def test_one_checkpoint_from_before_the_last_sane_evaluation_stays():
    trust = Trust()
    assert kept([10, 20, 30, 40], 2, trust) == [10, 30, 40]  # nothing is known: the oldest
    assert trust.evaluated(25, 1.0)
    assert kept([10, 20, 30, 40], 2, trust) == [20, 30, 40]
    assert not trust.evaluated(45, 2.1)
    assert kept([20, 30, 40, 50], 2, trust) == [20, 40, 50]
    assert not trust.evaluated(47, float("nan"))
    assert trust.evaluated(55, 1.9)
    assert kept([20, 40, 50], 1, trust) == [50]
    again = Trust()
    again.load(json.loads(json.dumps(trust.to_dict())))
    assert again.to_dict() == trust.to_dict() == {"best": 1.0, "step": 55}
    again.load("an older checkpoint")


def test_losses_below_zero_have_a_rule_too():
    trust = Trust()
    assert trust.evaluated(1, -1.0)
    assert trust.evaluated(2, -0.1) and not trust.evaluated(3, 0.1)


def checkpoints(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_going_back_to_a_step_repeats_the_run_from_there(tmp_path, capsys):
    config = dataclasses.replace(RUN, checkpoint_every=3, keep_checkpoints=4)
    whole = loop.train(STAGE, config, tmp_path, batches)
    assert checkpoints(tmp_path) == ["12", "3", "6", "9"]
    again = loop.train(STAGE, config, tmp_path, batches, start_from=StartFrom(exactly=6))
    for a, b in zip(leaves(whole), leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    assert checkpoints(tmp_path) == ["12", "12.later", "3", "6", "9", "9.later"]
    assert "going back to step 6" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="no checkpoint of step 7; it has 3, 6, 9, 12"):
        loop.train(STAGE, config, tmp_path, batches, start_from=StartFrom(exactly=7))


def test_a_run_goes_back_by_itself_after_two_failures_at_one_step(tmp_path):
    """With other draws, so that it takes another way."""
    config = tiny.ctvit()
    run_folder.record_run(tmp_path, config, {})
    poisoned = {"on": True}

    def stream(start):
        for step, batch in enumerate(batches(start), start + 1):
            bad = poisoned["on"] and step == 11
            yield {**batch, "y": batch["y"] * np.float32(np.nan)} if bad else batch

    def attempt():
        start = run_folder.start_from(tmp_path, config)

        def on_change(status, step):
            run_folder.write_status(tmp_path, status, step, RUN.steps, start)

        return start, lambda: run(
            tmp_path,
            stream=stream,
            on_change=on_change,
            start_from=start,
            cases_of=lambda step: f"the cases of {step}",
        )

    for _ in range(2):
        start, go = attempt()
        assert start == NEWEST
        with pytest.raises(GctError, match=r"at step 11 \(its batch: the cases of 10\); run the"):
            go()
    assert json.loads((tmp_path / "status.json").read_text())["diverged"] == {"11": 2}
    assert checkpoints(tmp_path) == ["10", "5"]

    start, go = attempt()
    assert start == StartFrom(before_newest=True, falls=1)
    poisoned["on"] = False
    state = go()
    assert int(state.step) == RUN.steps
    assert "10.later" in checkpoints(tmp_path)
    status = json.loads((tmp_path / "status.json").read_text())
    assert status == {"state": "finished", "step": 12, "steps": 12, "falls": 1}
    other = run(tmp_path / "undisturbed")
    assert np.abs(leaves(state)[2] - leaves(other)[2]).max() > 0
    assert attempt()[0] == NEWEST


def test_without_an_earlier_checkpoint_the_message_says_what_to_do():
    with pytest.raises(ConfigError, match=r"no earlier checkpoint is left; start anew"):
        StartFrom(before_newest=True, falls=1).step([10])


def test_a_step_to_go_back_to_counts_once(tmp_path):
    config = tiny.ctvit()
    back = dataclasses.replace(config, loop=dataclasses.replace(config.loop, resume_step=10))
    run_folder.record_run(tmp_path, config, {})
    assert run_folder.start_from(tmp_path, back) == StartFrom(exactly=10)
    run_folder.record_run(tmp_path, back, {})
    assert run_folder.start_from(tmp_path, back) == NEWEST
    assert to_dict(back)["loop"]["resume_step"] == 10

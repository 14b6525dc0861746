"""Two processes that train together: the same losses, one end, and a loss that is told."""

import json
import shutil
import signal
import time

import pytest
from processes import Group, metrics, saved_sums, wait_for_step
from tiny_model import quick_compilation

from launch import train

pytestmark = pytest.mark.long
# The stage that compiles fastest; launch.studies.meshes and kills go through the others. With a
# tensor axis across the processes both hold every row.
ARGUMENTS = [
    *("--config", "configs/tiny.py:t5", "loop.mesh=[1, 1, 4]", "data.held_out=10"),
    *("loop.steps=8", "loop.log_every=1", "loop.eval_every=4", "loop.checkpoint_every=2"),
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process on one device logs."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    with quick_compilation():
        assert train.main([*ARGUMENTS, "--workdir", str(workdir), "loop.mesh=[1, 1, 1]"]) == 0
    return losses(workdir)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a run of two processes that nothing happened to."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    codes, said = Group([*ARGUMENTS, "--workdir", str(workdir)]).wait()
    assert codes == [0, 0], said
    return workdir


def losses(workdir):
    return {
        (name, entry["step"]): entry[name]
        for entry in metrics(workdir)
        for name in ("loss", "eval/loss")
        if name in entry
    }


def test_two_processes_log_the_losses_of_one_device(alone, undisturbed):
    assert losses(undisturbed) == pytest.approx(alone, rel=1e-4)


@pytest.mark.slow
def test_a_signal_to_one_stops_both_at_the_same_step(undisturbed, tmp_path):
    command = [*ARGUMENTS, "--workdir", str(tmp_path)]
    group = Group(command)
    wait_for_step(tmp_path, 3)
    group.signal(1, signal.SIGINT)
    codes, said = group.wait()
    assert codes == [75, 75], said
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["state"] == "stopped" and status["step"] in saved_sums(tmp_path)
    for text in said:
        assert f"stopped at step {status['step']} of 8 and saved" in text
    assert Group(command).wait()[0] == [0, 0]
    assert saved_sums(tmp_path)[8] == saved_sums(undisturbed)[8]
    assert losses(tmp_path) == losses(undisturbed)


@pytest.mark.parametrize("victim", [0])
def test_a_loss_is_told_in_a_line_and_the_run_goes_on_elsewhere(alone, tmp_path, victim):
    command = [*ARGUMENTS, "--workdir", str(tmp_path)]
    group = Group(command)
    wait_for_step(tmp_path, 5)
    group.kill_child(victim)
    start = time.monotonic()
    codes, said = group.wait()
    assert time.monotonic() - start < 60
    assert codes == [75, 75], said
    assert "launch.train: this process was killed; run the same command" in said[victim]
    last = said[1 - victim].strip().splitlines()[-1]
    assert last.startswith("launch.train: another process of the run was lost")
    assert "Traceback" not in said[1 - victim] and "***" not in said[1 - victim]
    # on one host, with another mesh
    with quick_compilation():
        assert train.main([*command, "loop.mesh=[2, 1, 1]"]) == 0
    assert losses(tmp_path) == pytest.approx(alone, rel=1e-4)


def test_hosts_without_a_common_folder_are_refused_at_once(tmp_path):
    group = Group(ARGUMENTS, workdirs=[tmp_path / "a", tmp_path / "b"])
    codes, said = group.wait(90)
    assert codes == [2, 2], said
    for text in said:
        assert "is not the same folder on all hosts: process 1 (host " in text
    assert not (tmp_path / "a").exists()


def test_other_options_on_one_process_are_refused(tmp_path):
    commands = [[*ARGUMENTS, "--workdir", str(tmp_path / "run")] for _ in range(2)]
    commands[1].append("optimizer.learning_rate=0.1")
    codes, said = Group(commands=commands).wait(90)
    assert codes == [2, 2]
    for text in said:
        assert "process 1 was started with optimizer.learning_rate = 0.1, process 0 with" in text
    assert not (tmp_path / "run").exists()


def test_what_one_refuses_all_refuse(undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "run")
    command = [*ARGUMENTS, "--workdir", str(tmp_path / "run"), "loop.seed=7"]
    codes, said = Group(command).wait(90)
    assert codes == [2, 2]
    for text in said:
        assert "loop.seed 0 -> 7" in text

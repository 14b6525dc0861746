"""The scripts of launch/cluster: clean, right in a dry run, and starting again when they should."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from launch.train import parsed

CLUSTER = Path(__file__).parents[2] / "launch" / "cluster"
SCRIPTS = sorted([*CLUSTER.glob("*.sh"), *CLUSTER.glob("*.sbatch")])
# With what a shell would take apart.
ARGUMENTS = [
    *("--config", "configs/base.py:ctvit", "--workdir", "gs://b/a run"),
    *("loop.mesh=[-1, 4, 1]", 'data.root="it\'s"', "a&b=$HOME\\"),
]
TPU = {"TPU_NAME": "gct", "ZONE": "us-x", "ACCELERATOR": "v4-32", "REPOSITORY": "https://x/y z"}
GKE = {
    "NAME": "ctvit",
    "IMAGE": "registry/gct_jax",
    "ACCELERATOR": "tpu-v5-lite-podslice",
    "TOPOLOGY": "4x8",
    "HOSTS": "8",
    "CHIPS": "4",
}


def script(name, *arguments, **environment):
    """Run a script; its exit code and what it said."""
    return subprocess.run(
        ["bash", str(CLUSTER / name), *arguments],
        env={"PATH": os.environ["PATH"], "DRY_RUN": "1", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path):
    checker = shutil.which("shellcheck")
    if checker is None:
        pytest.skip("shellcheck comes with the extra dev")
    done = subprocess.run([checker, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_what_runs_on_each_worker_is_the_command():
    done = script("tpu_vm.sh", "train", *ARGUMENTS, **TPU)
    assert done.returncode == 0, done.stderr
    words = shlex.split(done.stdout)
    assert words[:7] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "gct", "--zone"]
    assert "--worker=all" in words
    remote = words[words.index("--command") + 1]
    inner = remote.partition("-m launch.train")[2].partition(" >> train.log")[0]
    assert shlex.split(inner) == ["--multi-host", *ARGUMENTS]
    options = parsed(shlex.split(inner))
    assert options.multi_host == "" and options.overrides == ARGUMENTS[4:]
    assert subprocess.run(["bash", "-n", "-c", remote]).returncode == 0


@pytest.mark.parametrize(
    ("python", "code", "said"), [("sleep 30", 0, "started"), ("echo no such option; exit 2", 2, "")]
)
def test_a_start_is_told_if_there_was_one(tmp_path, python, code, said):
    clone = tmp_path / "gct_jax"
    (clone / ".venv" / "bin").mkdir(parents=True)
    (clone / "launch" / "cluster").mkdir(parents=True)
    shutil.copy(CLUSTER / "restart.sh", clone / "launch" / "cluster")
    (clone / ".venv" / "bin" / "python").write_text(f"#!/bin/bash\n{python}\n")
    (clone / ".venv" / "bin" / "python").chmod(0o755)
    words = shlex.split(script("tpu_vm.sh", "train", *ARGUMENTS, **TPU).stdout)
    remote = ["bash", "-c", words[words.index("--command") + 1]]
    try:
        done = subprocess.run(remote, cwd=tmp_path, capture_output=True, text=True, timeout=30)
        assert (done.returncode, done.stdout.strip()) == (code, said)
        if code == 0:
            again = subprocess.run(remote, cwd=tmp_path, capture_output=True, text=True, timeout=30)
            assert again.returncode == 2 and "already training here" in again.stderr
        else:
            assert "no such option" in done.stderr
    finally:
        stop = shlex.split(script("tpu_vm.sh", "stop", **TPU).stdout)[-1]
        subprocess.run(["bash", "-c", stop], timeout=30)
    elsewhere = subprocess.run(remote, cwd=clone, capture_output=True, text=True, timeout=30)
    assert elsewhere.returncode == 2 and not elsewhere.stdout


@pytest.mark.parametrize("what", ["create", "install", "logs", "stop", "delete"])
def test_the_other_commands_of_a_tpu(what):
    done = script("tpu_vm.sh", what, **TPU, SPOT="1", PROJECT="p")
    assert done.returncode == 0, done.stderr
    words = shlex.split(done.stdout)
    assert words[0] == "gcloud" and "gct" in words and "p" in words
    assert ("--spot" in words) == (what == "create")
    if "--command" in words:
        remote = words[words.index("--command") + 1]
        assert subprocess.run(["bash", "-n", "-c", remote]).returncode == 0


def test_slurm_runs_the_command_on_every_gpu():
    done = script("train.sbatch", *ARGUMENTS)
    assert done.returncode == 0, done.stderr
    words = shlex.split(done.stdout)
    assert words[0] == "srun"
    assert words[words.index("launch.train") + 1 :] == ["--multi-host", *ARGUMENTS]


def test_the_manifest_holds_the_command_and_is_valid():
    yaml = pytest.importorskip("yaml")
    validate = pytest.importorskip("kubernetes_validate")
    done = script("gke.sh", *ARGUMENTS, **GKE)
    assert done.returncode == 0, done.stderr
    manifest = yaml.safe_load(done.stdout)
    assert manifest["kind"] == "JobSet" and manifest["metadata"]["name"] == "ctvit"
    (workers,) = manifest["spec"]["replicatedJobs"]
    job = workers["template"]
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["args"] == ARGUMENTS
    assert container["command"] == ["python", "-m", "launch.train", "--multi-host"]
    # The schema of JobSet is in no package; that of the Job within it is.
    whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, **job}
    validate.validate(json.loads(json.dumps(whole)), "1.31", strict=True)
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 8


@pytest.mark.parametrize(
    ("name", "arguments", "environment", "message"),
    [
        ("tpu_vm.sh", [], TPU, "name what to do"),
        ("tpu_vm.sh", ["fly"], TPU, "'fly' is none of"),
        ("tpu_vm.sh", ["create"], {}, "set TPU_NAME and ZONE"),
        ("tpu_vm.sh", ["train"], TPU, "give the options"),
        ("tpu_vm.sh", ["create"], TPU | {"ACCELERATOR": ""}, "set ACCELERATOR"),
        ("train.sbatch", [], {}, "give the options"),
        ("gke.sh", [], GKE, "give the options"),
        ("gke.sh", ARGUMENTS, GKE | {"HOSTS": "", "CHIPS": ""}, "set HOSTS CHIPS"),
        ("gke.sh", ARGUMENTS, GKE | {"HOSTS": "abc"}, "HOSTS is a whole number, not 'abc'"),
        ("restart.sh", [], {}, "give the command"),
        ("restart.sh", ["true"], {"RESTART_SECONDS": "x"}, "whole numbers, not x"),
        ("train.sbatch", ["--config", "x"], {"DRY_RUN": "0"}, "there is no srun here"),
    ],
)
def test_what_is_missing_is_said_in_a_line(name, arguments, environment, message):
    done = script(name, *arguments, **environment)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{name}: error: ") and message in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_unfinished_run_is_started_again_and_another_end_is_passed_on(tmp_path):
    count = tmp_path / "count"
    command = f"echo x >> {count}; n=$(wc -l < {count}); if ((n < 3)); then exit 75; fi; exit $1"
    for code in (0, 2):
        count.write_text("")
        done = script("restart.sh", "bash", "-c", command, "bash", str(code), RESTART_SECONDS="0")
        assert done.returncode == code and count.read_text() == "x\n" * 3
        assert done.stderr.splitlines() == [
            f"restart.sh: unfinished; start {n} in 0 s" for n in (2, 3)
        ]
    count.write_text("")
    done = script("restart.sh", "bash", "-c", command, RESTART_SECONDS="0", RESTARTS="1")
    assert done.returncode == 75 and count.read_text() == "x\n" * 2


def test_a_signal_reaches_the_command_and_ends_the_restarts(tmp_path):
    ready, saved = tmp_path / "ready", tmp_path / "saved"
    inner = f"trap 'sleep 0.3; touch {saved}; exit 75' TERM; touch {ready}; sleep 60 & wait $!"
    process = subprocess.Popen(["bash", str(CLUSTER / "restart.sh"), "bash", "-c", inner])
    try:
        while not ready.exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=50) == 75
    finally:
        process.kill()
        process.wait()
    assert saved.exists()

"""A parent that tells what ended its child, and a child that does not outlive its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from gct_jax.errors import ConfigError
from gct_jax.runtime import supervision

ROOT = Path(__file__).parents[2]
PARENT = """
import sys
from gct_jax.runtime.supervision import supervise
sys.exit(supervise("child", []))
"""
CHILD = """
import os, sys, time
from gct_jax.runtime.supervision import run_supervised, tell_joined
def run():
    {joined}
    {body}
sys.exit(run_supervised("child", run))
"""


def start(folder, body, joined="tell_joined()"):
    (folder / "child.py").write_text(CHILD.format(body=body, joined=joined))
    return subprocess.Popen(
        [sys.executable, "-c", PARENT],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
    )


def ended(folder, body, **options):
    process = start(folder, body, **options)
    said = process.communicate(timeout=60)[1]
    return process.returncode, said


ABORT = (
    r'sys.stderr.write("\r 5/8 step\nF1130 12:00:00.0 1 client.h] Terminating\n*** trace ***\n");'
    "sys.stderr.flush(); os.abort()"
)


@pytest.mark.parametrize(
    ("body", "code", "lines"),
    [
        ("pass", 0, []),
        ("print('Error or not', file=sys.stderr)", 0, ["Error or not"]),
        (ABORT, 75, [" 5/8 step", "child: another process of the run was lost"]),
        ("os.kill(os.getpid(), 9)", 75, ["child: this process was killed"]),
        (
            "from gct_jax.errors import ConfigError; raise ConfigError('no')",
            2,
            ["child: error: no"],
        ),
        (
            "from gct_jax.errors import UnfinishedError; raise UnfinishedError('stopped at 3')",
            75,
            ["child: stopped at 3"],
        ),
    ],
    ids=["done", "said", "abort", "killed", "refused", "unfinished"],
)
def test_how_a_child_ends_is_told_in_a_line(tmp_path, body, code, lines):
    found, said = ended(tmp_path, body)
    assert found == code, said
    told = [line for line in said.splitlines() if line]
    assert len(told) == len(lines)
    for line, expected in zip(told, lines, strict=True):
        assert line.startswith(expected)


def test_a_defect_keeps_its_traceback(tmp_path):
    code, said = ended(tmp_path, "1 / 0")
    assert code == 1 and "ZeroDivisionError" in said


WAIT = "open('ready', 'w').write(str(os.getpid())); time.sleep(60)"


def ready(folder):
    while not (folder / "ready").exists() or not (folder / "ready").read_text():
        time.sleep(0.02)
    return int((folder / "ready").read_text())


def test_signals_are_handed_on(tmp_path):
    process = start(tmp_path, WAIT)
    ready(tmp_path)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 143
    assert said.startswith("child: interrupted")


def test_before_the_others_have_joined_a_signal_ends_at_once(tmp_path):
    process = start(tmp_path, f"signal.signal(15, signal.SIG_IGN); {WAIT}", "import signal")
    ready(tmp_path)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 143
    assert said == "child: stopped before all processes had joined\n"


def test_others_that_do_not_come_are_not_taken_for_lost(tmp_path):
    code, said = ended(tmp_path, ABORT, joined="pass")
    assert code == 75
    assert "the other processes did not come; nothing was trained" in said.splitlines()[-1]


def test_a_child_ends_with_its_parent(tmp_path):
    process = start(tmp_path, WAIT)
    child = ready(tmp_path)
    process.kill()
    process.communicate(timeout=30)
    end = time.monotonic() + 20
    while Path(f"/proc/{child}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()


def test_only_what_jax_raised_is_a_loss(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)

    def loss(cause):
        error = ConfigError(f"told in a line: {cause}")
        error.__cause__ = cause
        return supervision.is_loss(error)

    assert loss(jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: closed by peer"))
    assert not loss(OSError("Connection refused"))  # of an object store
    assert not loss(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"))

"""Signals end a process by its own way out, are not lost, and wait where steps belong together."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import gct_jax
from gct_jax.runtime import stopping
from gct_jax.runtime.exit_codes import exit_code

ROOT = Path(gct_jax.__file__).parents[1]
WRITER = """
import signal, sys, time
from gct_jax.runtime.exit_codes import exit_code
from gct_jax.runtime.files import replace_files_when_done

def run():
    with replace_files_when_done("new/out") as folder:
        (folder / "volume").write_text("half")
        print("ready", flush=True)
        time.sleep(60)

sys.exit(exit_code("gct", run))
"""


def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_nothing_is_left_behind(tmp_path, number):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert told == "gct: interrupted; unfinished output is discarded\n"
    assert not list(tmp_path.iterdir())


def test_a_swallowed_signal_is_heard_at_the_next_check(capsys):
    def run():
        with contextlib.suppress(BaseException):  # as an extension module may while it is imported
            send()
        assert stopping.heard() == signal.SIGTERM
        stopping.check()
        raise AssertionError("went on")

    assert exit_code("gct", run) == 143
    assert "interrupted" in capsys.readouterr().err


def test_steps_that_belong_together_are_finished_first():
    done = []

    def run():
        with stopping.deferred():
            send(signal.SIGHUP)
            stopping.check()
            done.append("both")
        done.append("never")

    assert exit_code("gct", run) == 129
    assert done == ["both"]


def test_what_the_process_was_told_to_ignore_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert exit_code("gct", lambda: send(signal.SIGHUP)) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in stopping.SIGNALS]
    assert exit_code("gct", lambda: None) == 0
    assert [signal.getsignal(number) for number in stopping.SIGNALS] == before
    stopping.check()
    assert stopping.heard() is None

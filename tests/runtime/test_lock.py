"""One run at a time in a folder; a holder that was killed does not keep it."""

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import gct_jax
from gct_jax.errors import GctError
from gct_jax.runtime import lock

ROOT = Path(gct_jax.__file__).parents[1]
HOLDER = """
import sys, time
from pathlib import Path
from gct_jax.runtime import lock
from gct_jax.runtime.lock import locked

lock.LEASE_SECONDS = 2.0
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def short_lease(monkeypatch):
    monkeypatch.setattr(lock, "LEASE_SECONDS", 2.0)


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_live_holder_is_named(tmp_path, holder):
    with pytest.raises(GctError) as caught, lock.locked(tmp_path):
        raise AssertionError("both hold it")
    said = str(caught.value)
    assert f"in use by process {holder.pid} on {platform.node()}, started 20" in said
    assert holder.poll() is None


def test_a_killed_holder_is_recognised(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lock.locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_holder_on_another_host_counts_while_it_is_refreshed(
    tmp_path, holder, monkeypatch, capsys
):
    monkeypatch.setattr(platform, "node", lambda: "elsewhere")
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    with pytest.raises(GctError, match=f"process {holder.pid}"), lock.locked(tmp_path):
        raise AssertionError("both hold it")
    assert "waiting" in capsys.readouterr().err


def test_a_dead_holder_on_another_host_is_recognised(tmp_path, holder, monkeypatch, capsys):
    holder.send_signal(signal.SIGSTOP)  # to the other host, a process that refreshes nothing
    monkeypatch.setattr(platform, "node", lambda: "elsewhere")
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    with lock.locked(tmp_path):
        assert "waiting" in capsys.readouterr().err


def test_it_is_free_again_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), lock.locked(tmp_path):
        raise ZeroDivisionError
    with lock.locked(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} >= {"run.lock"}

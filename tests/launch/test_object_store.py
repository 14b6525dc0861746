"""A work folder in an object store, on a stand-in for Google's.

    pip install -e '.[test,cloud]' gcp-storage-emulator
    python -m pytest -m long tests/launch/test_object_store.py

Beside TensorFlow etils takes its file system, which cannot be pointed to a stand-in.
"""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from processes import Group

MISSING = [name for name in ("gcsfs", "gcp_storage_emulator") if not importlib.util.find_spec(name)]
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(bool(MISSING), reason="needs the extra cloud and gcp-storage-emulator"),
    pytest.mark.skipif(
        importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed"
    ),
]
ROOT = Path(__file__).parents[2]
T5 = ["--config", "configs/tiny.py:t5", "loop.checkpoint_every=2", "loop.mesh=[-1, 1, 1]"]


@pytest.fixture(scope="module")
def store():
    """The environment that points to the stand-in."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = ROOT / "tests" / "gcs_stand_in.py"
    server = subprocess.Popen(
        [sys.executable, str(script), str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout.readline() == "ready\n"
    address = f"http://127.0.0.1:{port}"
    yield {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any",
    }
    server.kill()
    server.communicate()


def run(store, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        env=os.environ | store | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=240,
    )
    return done.returncode, done.stderr


def test_a_run_lives_in_a_bucket(store, tmp_path):
    where = ["--workdir", "gs://bucket/run"]
    code, said = run(store, "launch.train", *T5, *where, "loop.steps=4")
    assert code == 0, said[-2000:]
    code, said = run(store, "launch.train", *T5, *where, "loop.steps=6")
    assert code == 0, said[-2000:]
    script = (
        "from etils import epath; import json; p = epath.Path('gs://bucket/run');"
        "print(json.dumps({'names': sorted(x.name for x in p.iterdir()),"
        "'steps': sorted(x.name for x in (p / 'checkpoints').iterdir()),"
        "'status': json.loads((p / 'status.json').read_text()),"
        "}))"
    )
    out = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | store, capture_output=True, text=True
    )
    found = json.loads(out.stdout.splitlines()[-1])
    assert {"config.json", "metrics.jsonl", "tokenizer.model", "tensorboard"} <= set(found["names"])
    assert "run.lock.holder" not in found["names"]
    assert {"4", "6"} <= set(found["steps"])
    assert found["status"] == {"state": "finished", "step": 6, "steps": 6}

    # the next stage reads it there, and what is refused names the address
    local = str(tmp_path / "model")
    code, said = run(store, "launch.export_model", "gs://bucket/run", "--out", local)
    assert code == 0 and (tmp_path / "model" / "t5.safetensors").exists(), said[-2000:]
    code, said = run(store, "launch.export_model", "gs://bucket/none", "--out", local)
    assert code == 2 and "gs://bucket/none" in said.splitlines()[-1]
    code, said = run(store, "launch.train", *T5, *where, "loop.seed=5")
    assert code == 2 and "gs://bucket/run" in said and "loop.seed 0 -> 5" in said


def test_two_processes_share_a_bucket(store, monkeypatch):
    for name, value in store.items():
        monkeypatch.setenv(name, value)
    codes, said = Group([*T5, "--workdir", "gs://bucket/two", "loop.steps=4"]).wait()
    assert codes == [0, 0], said

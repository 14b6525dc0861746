"""What is said never ends a run, whatever the streams are."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gct_jax
from gct_jax.runtime.streams import Tolerant, spelled

ROOT = Path(gct_jax.__file__).parents[1]
SPEAKER = """
import sys
from pathlib import Path
from gct_jax.runtime.exit_codes import exit_code

def run():
    for name in ("a", "b"):
        print("\\u80f8\\u90e8 " * 20000)
        print(name, file=sys.stderr)
        Path(name).write_text("whole")

sys.exit(exit_code("gct", run))
"""


@pytest.mark.parametrize(
    "shell",
    ["{} | true", "{} 2>&1 | true", "{} >&-", "{} 2>&-", "{} <&- >&- 2>&-", "{} > /dev/full"],
)
def test_work_is_done_however_little_can_be_said(tmp_path, shell):
    (tmp_path / "speaker.py").write_text(SPEAKER)
    command = shell.format(f'"{sys.executable}" speaker.py')
    command += '; echo "${PIPESTATUS[0]}" > code'
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "cp1252"}
    subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, check=True, timeout=60)
    assert (tmp_path / "code").read_text() == "0\n"
    assert [(tmp_path / name).read_text() for name in "ab"] == ["whole", "whole"]


def test_what_an_encoding_lacks_is_escaped():
    assert spelled("a 胸 é", "latin-1") == "a \\u80f8 é"
    assert spelled("caf\udce9", None) == "caf\\udce9"


def test_a_stream_that_broke_stays_quiet():
    stream = io.StringIO()
    tolerant = Tolerant(stream)
    tolerant.write("before")
    stream.close()
    assert tolerant.write("after") == 5
    tolerant.flush()

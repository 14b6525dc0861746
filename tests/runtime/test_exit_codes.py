"""Commands end in an exit code and one line."""

import errno
import os
from pathlib import Path

import pytest

from gct_jax.errors import InputError
from gct_jax.runtime.exit_codes import exit_code


def raising(error):
    def run():
        raise error

    return run


def test_success_says_nothing(capsys):
    assert exit_code("launch.x", lambda: None) == 0
    assert capsys.readouterr() == ("", "")


def test_bad_input_is_one_line(capsys):
    assert exit_code("launch.x", raising(InputError("a.csv has no\nprompt"))) == 2
    assert capsys.readouterr().err == "launch.x: error: a.csv has no prompt\n"


@pytest.mark.parametrize("name", ["a" * 300, "not/there", "\u00e9" * 200])
def test_a_file_that_cannot_be_opened_is_named(capsys, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert exit_code("launch.x", lambda: print(Path(name).read_text())) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"launch.x: error: {name}: ") and said.count("\n") == 1


def test_a_full_disk_has_no_file_name(capsys):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert exit_code("gct", raising(full)) == 2
    assert capsys.readouterr().err == "gct: error: No space left on device\n"


@pytest.mark.parametrize("error", [OSError(errno.EPIPE, "Broken pipe"), ValueError("a defect")])
def test_defects_keep_their_traceback(error):
    with pytest.raises(type(error)):
        exit_code("gct", raising(error))


def test_interruption(capsys):
    assert exit_code("gct", raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err.startswith("gct: interrupted")

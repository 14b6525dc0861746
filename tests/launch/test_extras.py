"""An entry point without its packages says in one line what to install."""

import importlib
import importlib.metadata
import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

from gct_jax.errors import ConfigError
from launch import extras

ROOT = Path(__file__).parents[2]
CALLS = {
    "train": ["--config", "configs/tiny.py:ctvit", "--workdir", "w"],
    "export_model": ["w", "--out", "m"],
    "demo.evaluate": ["--out", "m"],
    "studies.superres": ["--out", "m"],
    "plan.__main__": ["--config", "configs/tiny.py:ctvit"],
    "benchmark.__main__": ["--no-peers", "--out", "m"],
}


def requirements(optional: dict[str, list[str]], extra: str) -> set[str]:
    """Distributions of an extra, those of extras inside it included."""
    names = set()
    for text in optional[extra]:
        name, inner = re.match(r"([\w-]+)(?:\[(.*)\])?", text).groups()
        if name == "gct_jax":
            names |= set.union(*(requirements(optional, part) for part in inner.split(",")))
        else:
            names.add(name.lower())
    return names


@pytest.mark.parametrize("extra", ["train", "evaluate", "benchmark"])
def test_the_modules_are_those_of_the_project_file(extra):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    of_module = importlib.metadata.packages_distributions()
    found = {name.lower() for module in extras.MODULES[extra] for name in of_module[module]}
    assert found >= requirements(project["optional-dependencies"], extra)


def test_all_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as error:
        extras.require_extras("tpu", "train")
    assert str(error.value) == (
        "libtpu, optax, orbax, tensorboardX, filelock are missing; pip install -e '.[tpu,train]'"
    )


@pytest.mark.parametrize("command", CALLS)
def test_one_line_and_nothing_written(monkeypatch, capsys, tmp_path, command):
    module = importlib.import_module(f"launch.{command}")
    call = [str(ROOT / text) if text.startswith("configs") else text for text in CALLS[command]]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    assert module.main(call) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "missing; pip install -e '.[" in message
    assert list(tmp_path.iterdir()) == []

"""The text encoder through every format on the command line, without a change."""

import numpy as np
import pytest
from golden_case import FOLDER
from tiny_model import SENTENCES

from gct_jax.cli import main
from gct_jax.interop.huggingface import t5_from_huggingface
from gct_jax.model_folder import load_model
from gct_jax.text import train_vocabulary


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / "vocabulary.model"
    train_vocabulary(SENTENCES, path, 64)
    return path


def test_hugging_face_to_t5x_and_back(vocabulary, tmp_path):
    config, variables = t5_from_huggingface(FOLDER / "t5")
    first, second, t5x, back = (str(tmp_path / name) for name in ("1", "2", "t5x", "back"))
    tokenizer = ["--tokenizer", str(vocabulary)]
    convert = ["convert", "generatect", "--t5"]
    assert main([*convert, str(FOLDER / "t5"), *tokenizer, "--out", first]) == 0
    assert main(["export", "t5x", "--model", first, "--out", t5x]) == 0
    assert main([*convert, t5x, *tokenizer, "--set", "t5.max_length=9", "--out", second]) == 0
    assert main(["export", "huggingface", "--model", second, "--out", back]) == 0
    np.testing.assert_equal(t5_from_huggingface(back), (config, variables))
    model = load_model(second)
    np.testing.assert_equal(model.variables("t5"), variables)
    assert model.config.t5.max_length == 9
    assert model.tokenizer.model_bytes == vocabulary.read_bytes()
    # An exported folder brings its vocabulary along.
    assert main([*convert, back, "--out", str(tmp_path / "3")]) == 0


def test_what_is_missing_is_said(vocabulary, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    assert main(["convert", "generatect", *out]) == 2
    assert "at least one of --ctvit" in capsys.readouterr().err
    assert main(["convert", "generatect", "--t5", str(FOLDER / "t5"), *out]) == 2
    assert "give --tokenizer FILE" in capsys.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    options = ["--t5", str(empty), "--tokenizer", str(vocabulary)]
    assert main(["convert", "generatect", *options, *out]) == 2
    assert "neither a T5X checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

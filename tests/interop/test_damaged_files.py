"""Each kind of damage has its own one-line message and exit code 2, and leaves nothing behind."""

import pickle
import sys

import ml_dtypes
import numpy as np
import pytest
from golden_case import FOLDER
from safetensors.numpy import load_file, save_file

from gct_jax.cli import main
from gct_jax.interop.generatect.files import read_reference
from gct_jax.interop.torch_files import have_torch

needs_torch = pytest.mark.skipif(not have_torch(), reason="PyTorch is not installed")
QUERY = "transformer.layers.1.1.to_q.weight"
BIAS = "to_logits.bias"


@pytest.fixture
def state():
    return load_file(FOLDER / "maskgit.safetensors")


def convert(path, tmp_path, capsys, *options):
    """Message of a conversion that must fail."""
    out = tmp_path / "model"
    code = main(["convert", "generatect", "--transformer", str(path), "--out", str(out), *options])
    message = capsys.readouterr().err
    assert code == 2
    assert message.startswith("gct: error: ") and message.count("\n") == 1
    assert not out.exists()
    return message


def change(name, value):
    return lambda state: state | {name: value(state[name])}


def rename(old, new):
    return lambda state: {new if name == old else name: value for name, value in state.items()}


def with_nan(value):
    value = value.copy()
    value.flat[3] = np.nan
    return value


DAMAGES = {
    "renamed key": (
        rename(QUERY, QUERY.replace("to_q", "query")),
        ["lack 1 tensor(s)", QUERY, "(32, 32)", "query.weight"],
    ),
    "left out": (rename(BIAS, "critic.bias"), ["lack 1 tensor(s)", BIAS, "(64,)"]),
    "swapped shape": (
        change("token_emb.weight", np.transpose),
        ["'pos_emb.weight' has shape (200, 32)", "(200, 65)", "more do not fit either"],
    ),
    "swapped axes": (
        change("transformer.layers.0.3.1.weight", np.transpose),
        ["layers.0.3.1.weight' has shape (32, 170)", "ask for (170, 32)\n"],
    ),
    "too few rows": (change(BIAS, lambda x: x[1:]), [BIAS, "has shape (63,)", "ask for (64,)"]),
    "too few axes": (change("token_emb.weight", np.ravel), ["expected 2 axes"]),
    "whole numbers": (change(BIAS, lambda x: x.astype(np.int64)), [BIAS, "of type int64"]),
    "double precision": (change(BIAS, lambda x: x.astype(float)), [BIAS, "of type float64"]),
    "not a number": (change(QUERY, with_nan), [QUERY, "not finite (NaN or inf)"]),
    "too large": (change(QUERY, lambda x: x * np.float32(np.inf)), [QUERY, "not finite"]),
    "another model": (lambda state: {"visual.proj": np.ones(3, "f")}, ["no GenerateCT weights"]),
    "nothing": (lambda state: {}, ["no GenerateCT weights", "0 tensor(s)"]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(damage, state, tmp_path, capsys):
    alter, expected = DAMAGES[damage]
    path = tmp_path / "damaged.safetensors"
    save_file({k: np.ascontiguousarray(x) for k, x in alter(state).items()}, path)
    message = convert(path, tmp_path, capsys)
    assert str(path) in message
    for text in expected:
        assert text in message


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_sixteen_bit_weights_become_float32_of_the_same_value(dtype, state, tmp_path):
    narrow = {name: value.astype(dtype) for name, value in state.items()}
    save_file(narrow, tmp_path / "narrow.safetensors")
    save_file({k: x.astype("f") for k, x in narrow.items()}, tmp_path / "wide.safetensors")
    expected = read_reference(tmp_path / "wide.safetensors")
    found = read_reference(tmp_path / "narrow.safetensors")
    assert found.config == expected.config
    np.testing.assert_equal(found.variables, expected.variables)
    assert found.variables["maskgit"]["params"]["to_logits"]["bias"].dtype == np.float32


@pytest.mark.parametrize("name", ["maskgit.safetensors", "maskgit.pt"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_file_cut_short(name, share, tmp_path, capsys):
    if name.endswith(".pt") and not have_torch():
        pytest.skip("PyTorch is not installed")
    content = (FOLDER / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(content[: int(share * len(content))])
    assert f"{path} is damaged or cut short" in convert(path, tmp_path, capsys)


def test_missing_file_other_suffix_and_wrong_option(tmp_path, capsys):
    assert "there is no weight file" in convert(tmp_path / "a.safetensors", tmp_path, capsys)
    assert "neither a .pt nor a .safetensors" in convert(tmp_path / "a.ckpt", tmp_path, capsys)
    path = FOLDER / "superres.safetensors"
    assert "this is a superres file" in convert(path, tmp_path, capsys)
    path = FOLDER / "maskgit.safetensors"
    for field, text in {
        "superres.dim=3": "superres.dim is unknown; fields are: attn_dim_head",
        "maskgit.dim=3": "read from the weights",
        "ctvit.dim=3": "ctvit.dim is unknown; fields are: channels, patch_size",
        "volume.slices": "not of the form",
        "volume.slices=many": "volume.slices must be of type int",
    }.items():
        assert text in convert(path, tmp_path, capsys, "--set", field)


class Foreign:
    def __reduce__(self):
        return print, ("a weight file ran code",)


@needs_torch
def test_code_in_a_file_is_refused_and_not_run(state, tmp_path, capsys):
    import torch

    path = tmp_path / "foreign.pt"
    torch.save({**state, "extra": Foreign()}, path)
    message = convert(path, tmp_path, capsys)
    assert "asks to run Python code" in message
    torch.save({"model": Foreign()}, path)
    assert "asks to run Python code (print)" in convert(path, tmp_path, capsys)
    path.write_bytes(pickle.dumps({"model": Foreign()}))
    assert "no PyTorch weight file" in convert(path, tmp_path, capsys)
    torch.save([1, 2], path)
    assert "holds a list, not named tensors" in convert(path, tmp_path, capsys)


def test_without_torch_a_pt_file_names_the_remedy(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert not have_torch()
    message = convert(FOLDER / "maskgit.pt", tmp_path, capsys)
    assert "pip install 'gct_jax[convert]'" in message

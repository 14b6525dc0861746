"""Reading Hugging Face T5 folders; the numbers are checked in tests/models/test_t5.py."""

import json
import shutil

import numpy as np
import pytest
from golden_case import FOLDER
from safetensors.numpy import load_file, save_file

from gct_jax.errors import ModelFolderError
from gct_jax.interop.huggingface import t5_from_huggingface, t5_to_huggingface


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(FOLDER / "t5", tmp_path / "t5")


def edit_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_config_follows_the_folder(folder):
    config, _ = t5_from_huggingface(folder, max_length=77)
    sizes = (config.vocab_size, config.dim, config.depth, config.heads, config.dim_head)
    assert (*sizes, config.mlp_dim, config.max_length) == (128, 32, 3, 4, 8, 64, 77)


def test_sharded_full_model_equals_the_encoder_alone(folder):
    state = load_file(folder / "model.safetensors")
    names = sorted(state)
    shards = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    state["decoder.final_layer_norm.weight"] = np.ones(32, np.float32)
    shards["b.safetensors"].append("decoder.final_layer_norm.weight")
    _, expected = t5_from_huggingface(folder)
    for file, members in shards.items():
        save_file({name: state[name] for name in members}, folder / file)
    weight_map = {name: file for file, members in shards.items() for name in members}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model.safetensors").unlink()
    _, found = t5_from_huggingface(folder)
    np.testing.assert_equal(found, expected)


def test_export_writes_the_same_folder(folder, tmp_path):
    config, variables = t5_from_huggingface(folder)
    t5_to_huggingface(config, variables, tmp_path)
    np.testing.assert_equal(t5_from_huggingface(tmp_path), (config, variables))
    np.testing.assert_equal(
        load_file(tmp_path / "model.safetensors"), load_file(folder / "model.safetensors")
    )
    written, original = (
        json.loads((place / "config.json").read_text()) for place in (tmp_path, folder)
    )
    assert written.items() <= original.items()


def test_pickled_weights_equal_the_safetensors(folder):
    torch = pytest.importorskip("torch")
    expected = t5_from_huggingface(folder)
    state = load_file(folder / "model.safetensors")
    tensors = {name: torch.from_numpy(value) for name, value in state.items()}
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    np.testing.assert_equal(t5_from_huggingface(folder), expected)


def test_other_t5_is_refused(folder):
    edit_config(folder, feed_forward_proj="relu")
    with pytest.raises(ModelFolderError, match="feed_forward_proj is 'relu'"):
        t5_from_huggingface(folder)


def test_wrong_shape_is_named(folder):
    edit_config(folder, d_ff=96)
    with pytest.raises(ModelFolderError, match=r"wi_0.weight has shape \(64, 32\).*\(96, 32\)"):
        t5_from_huggingface(folder)


def test_missing_tensor_is_named(folder):
    edit_config(folder, num_layers=4)
    with pytest.raises(ModelFolderError, match=r"encoder.block.3.\S+ is missing"):
        t5_from_huggingface(folder)


def test_damaged_weights_are_named(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ModelFolderError, match=r"model.safetensors is damaged or cut short"):
        t5_from_huggingface(folder)


@pytest.mark.parametrize(
    "rename",
    [
        {"shared.weight": "encoder.embed_tokens.weight"},
        {"shared.weight": "_orig_mod.shared.weight"},
        {"encoder.block.0.": "encoder._orig_mod.block.0."},
        {"encoder.": "module.encoder.", "shared.": "module.shared."},
    ],
)
def test_other_names_of_the_same_tensors(folder, rename):
    expected = t5_from_huggingface(folder)
    state = load_file(folder / "model.safetensors")
    for old, new in rename.items():
        state = {new + n[len(old) :] if n.startswith(old) else n: x for n, x in state.items()}
    save_file(state, folder / "model.safetensors")
    np.testing.assert_equal(t5_from_huggingface(folder), expected)


def test_an_encoder_without_embeddings_is_named(folder):
    state = load_file(folder / "model.safetensors")
    del state["shared.weight"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ModelFolderError, match=r"shared\.weight .*is missing"):
        t5_from_huggingface(folder)

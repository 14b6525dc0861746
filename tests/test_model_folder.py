"""Saving and opening model folders, and every way in which one can be broken."""

import json
import os
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_model import random_variables, save_tiny_model, tiny_config

from gct_jax.components import abstract_variables, present_components
from gct_jax.config import CTViTConfig, ModelConfig, override
from gct_jax.errors import ConfigError, ModelFolderError
from gct_jax.model_folder import demo_folder, load_model, save_model
from gct_jax.provenance import Provenance, identity

CTVIT_ONLY = ["maskgit=None", "t5=None", "superres=None", "diffusion=None"]


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def folder(intact, tmp_path):
    return shutil.copytree(intact, tmp_path / "model")


def assert_trees_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_round_trip(intact):
    model = load_model(intact)
    assert model.config == tiny_config()
    for component in present_components(tiny_config()):
        assert_trees_equal(model.variables(component), random_variables(tiny_config(), component))
    assert model.variables("t5") is model.variables("t5")
    assert model.tokenizer.encode("Cardiomegaly", 48).ids[-1] == 1
    names = {
        *(f"{component}.safetensors" for component in present_components(tiny_config())),
        "config.json",
        "tokenizer.model",
    }
    assert {path.name for path in intact.iterdir()} == names | {"LICENSE", "provenance.json"}
    assert list(intact.parent.iterdir()) == [intact]
    umask = os.umask(0)
    os.umask(umask)
    assert all(path.stat().st_mode & 0o777 == 0o666 & ~umask for path in intact.iterdir())


def test_tensor_names_are_paths(intact):
    names = set(load_file(intact / "ctvit.safetensors"))
    assert "codebook.quantizer.embedding" in names
    assert all(name.startswith(("params.", "codebook.")) for name in names)
    assert "params.encoder.layers_0.mlp.wo.kernel" in load_file(intact / "t5.safetensors")


@pytest.mark.parametrize("name, mantissa_bits", [("float16", 11), ("bfloat16", 8)])
def test_half_precision_storage(tmp_path, name, mantissa_bits):
    folder = save_tiny_model(tmp_path / "half", weight_dtype=name)
    stored = load_file(folder / "ctvit.safetensors")
    for tensor, value in stored.items():
        half = getattr(ml_dtypes, name, None) or np.dtype(name)
        assert value.dtype == (half if tensor.startswith("params.") else np.float32)
    found = load_model(folder).variables("ctvit")
    expected = random_variables(tiny_config(), "ctvit")
    assert_trees_equal(found["codebook"], expected["codebook"])
    for leaf, exact in zip(
        jax.tree.leaves(found["params"]), jax.tree.leaves(expected["params"]), strict=True
    ):
        assert leaf.dtype == np.float32
        np.testing.assert_allclose(leaf, exact, rtol=2.0**-mantissa_bits, atol=1e-7)


def test_values_beyond_the_storage_type_are_refused(tmp_path):
    config = override(tiny_config(), CTVIT_ONLY)
    variables = random_variables(config, "ctvit")
    variables["params"]["pixels"]["bias"][3] = 1e5
    options = {"license_text": "test", "weight_dtype": "float16"}
    with pytest.raises(ModelFolderError, match=r"params.pixels.bias \(largest value 100000\)"):
        save_model(tmp_path / "m", config, {"ctvit": variables}, **options)
    assert not list(tmp_path.iterdir())


def test_hash_follows_the_files_but_not_the_place(intact, folder):
    assert load_model(folder).sha256 == load_model(intact).sha256
    (folder / "LICENSE").write_text("other terms")
    assert load_model(folder).sha256 == load_model(intact).sha256
    weights = load_file(folder / "t5.safetensors")
    weights["params.encoder.encoder_norm.scale"][0] += 1
    save_file(weights, folder / "t5.safetensors")
    assert load_model(folder).sha256 != load_model(intact).sha256


def test_parts_may_be_absent(tmp_path):
    config = override(tiny_config(), CTVIT_ONLY)
    variables = {"ctvit": random_variables(config, "ctvit")}
    save_model(tmp_path / "m", config, variables, license_text="test")
    model = load_model(tmp_path / "m")
    assert model.tokenizer is None
    assert model.variables("ctvit").keys() == {"params", "codebook"}
    with pytest.raises(ModelFolderError, match="has no component 'maskgit'"):
        model.variables("maskgit")


def test_failed_save_leaves_the_old_folder(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    variables = {
        component: random_variables(tiny_config(), component, seed=1)
        for component in present_components(tiny_config())
    }
    del variables["superres"]["params"]["final_conv"]
    with pytest.raises(ModelFolderError, match=r"superres.safetensors: tensor \S*final_conv"):
        save_model(folder, tiny_config(), variables, b"vocabulary", license_text="test")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list(folder.parent.iterdir()) == [folder]


def test_save_needs_what_the_config_describes(tmp_path):
    with pytest.raises(ModelFolderError, match=r"given for \['ctvit'\]"):
        save_model(tmp_path / "m", tiny_config(), {"ctvit": {}}, b"", license_text="test")
    with pytest.raises(ConfigError, match="weight_dtype = 'int8'"):
        save_model(tmp_path, tiny_config(), {}, license_text="test", weight_dtype="int8")
    variables = {component: {} for component in present_components(tiny_config())}
    with pytest.raises(ModelFolderError, match="tokenizer is needed"):
        save_model(tmp_path / "m", tiny_config(), variables, license_text="test")


def test_missing_folder_and_files_are_named(folder, tmp_path):
    with pytest.raises(ModelFolderError, match=r"no model folder .*nowhere"):
        load_model(tmp_path / "nowhere")
    for name, message in (
        ("t5.safetensors", "model lacks t5.safetensors"),
        ("tokenizer.model", r"cannot read tokenizer .*tokenizer.model"),
        ("config.json", "has no config.json"),
    ):
        (folder / name).rename(folder / "aside")
        with pytest.raises(ModelFolderError, match=message):
            load_model(folder)
        (folder / "aside").rename(folder / name)


@pytest.mark.parametrize("kept_bytes", [0, 5, 100, -1])
def test_cut_weight_file_is_named(folder, kept_bytes):
    path = folder / "maskgit.safetensors"
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(ModelFolderError, match=r"maskgit.safetensors is damaged or cut short"):
        load_model(folder)


def test_tensors_of_another_model_are_named(folder):
    path = folder / "ctvit.safetensors"
    good = load_file(path)
    name = "params.pixels.bias"
    shape = good[name].shape
    cases = {
        rf"{name} \({shape[0]},\) is missing": {k: v for k, v in good.items() if k != name},
        rf"{name} has shape \(3,\), config.json asks for \({shape[0]},\)": good
        | {name: np.zeros(3, np.float32)},
        "tensor params.extra is not part": good | {"params.extra": np.zeros(3, np.float32)},
    }
    for message, tensors in cases.items():
        save_file(tensors, path)
        with pytest.raises(ModelFolderError, match=message) as error:
            load_model(folder)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def edit_config(folder, change):
    values = json.loads((folder / "config.json").read_text())
    change(values)
    (folder / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    "section, field, value, message",
    [
        ("maskgit", "widht", 3, r"config.maskgit.widht is unknown"),
        ("t5", "dim", "wide", r"config.t5.dim must be of type int"),
        ("ctvit", "heads", 0, r"config.ctvit.heads = 0 must be a number of at least 1"),
        ("ctvit", "codebook_size", 33, r"num_tokens = 32 must equal ctvit.codebook_size = 33"),
        ("superres", "text_embed_dim", 8, r"superres.text_embed_dim = 8 must equal t5.dim = 16"),
        ("volume", "slices", 6, r"volume.slices = 6 is not 1 plus a multiple of"),
        ("volume", "image_size", 20, r"image_size = 20 is no multiple of ctvit.patch_size = 8"),
        ("t5", "vocab_size", 8, r"token_embedder.embedding has shape"),
        ("superres", "learned_sinu_pos_emb_dim", 0, r"learned_sinu_pos_emb_dim = 0 must be"),
        ("superres", "learned_sinu_pos_emb_dim", 32, r"superres.safetensors"),
    ],
)
def test_config_errors_name_the_field(folder, section, field, value, message):
    edit_config(folder, lambda values: values[section].update({field: value}))
    with pytest.raises(ModelFolderError, match=message) as error:
        load_model(folder)
    assert "\n" not in str(error.value)


def test_unreadable_configs(folder):
    edit_config(folder, lambda values: values.update(format_version=3))
    with pytest.raises(ModelFolderError, match=r"config.json is not of format_version 1 or 2"):
        load_model(folder)
    (folder / "config.json").write_text('{"name": ')
    with pytest.raises(ModelFolderError, match=r"config.json is damaged"):
        load_model(folder)


def test_published_sizes():
    """Parameter counts of GenerateCT as published, less tensors it stores but never uses."""
    unused_context_norms = {"ctvit": 16 * 512, "maskgit": 6 * 512}
    codebook = 8192 * 512 + 8192
    published = {"ctvit": 43_260_168 + codebook, "maskgit": 40_378_184, "superres": 22_190_440}
    config = ModelConfig(ctvit=CTViTConfig(patch_norm="both"))
    for component, count in published.items():
        leaves = jax.tree.leaves(abstract_variables(config, component))
        assert sum(leaf.size for leaf in leaves) == count - unused_context_norms.get(component, 0)


def test_demo_folder_lies_in_the_package():
    assert demo_folder().parts[-3:] == ("gct_jax", "assets", "demo")


# --- What belongs together


def another_ctvit(folder, tmp_path):
    """The same folder with the CT-ViT of another one of the same sizes."""
    config = override(tiny_config(), CTVIT_ONLY)
    variables = {"ctvit": random_variables(config, "ctvit", seed=9)}
    save_model(tmp_path / "other", config, variables, license_text="test")
    shutil.copy(tmp_path / "other" / "ctvit.safetensors", folder / "ctvit.safetensors")


def test_a_weight_file_of_another_folder_is_noticed(folder, tmp_path):
    another_ctvit(folder, tmp_path)
    model = load_model(folder)
    with pytest.raises(ModelFolderError, match=r"ctvit\.safetensors is not the file that"):
        model.variables("ctvit")
    assert model.variables("t5")
    (folder / "provenance.json").unlink()  # as the message says
    assert load_model(folder).variables("ctvit")


def test_parts_that_were_trained_with_others_do_not_make_a_folder(folder, tmp_path):
    variables = {
        component: random_variables(tiny_config(), component)
        for component in present_components(tiny_config())
    }
    tokenizer = (folder / "tokenizer.model").read_bytes()
    own = load_model(folder).provenance.identities
    for name, message in (("ctvit", "another ctvit"), ("tokenizer", "another tokenizer")):
        known = Provenance({}, {"maskgit": {**own, name: "0" * 64}})
        with pytest.raises(ModelFolderError, match=f"maskgit was trained with {message}"):
            save_model(
                tmp_path / "m",
                tiny_config(),
                variables,
                tokenizer,
                license_text="test",
                provenance=known,
            )
        assert not (tmp_path / "m").exists()
    known = Provenance({"ctvit": "f" * 64}, {"maskgit": {"ctvit": "f" * 64}})
    options = {"license_text": "test", "weight_dtype": "float16", "provenance": known}
    save_model(tmp_path / "m", tiny_config(), variables, tokenizer, **options)
    found = load_model(tmp_path / "m").provenance  # the identity is that before rounding
    assert found.identities["ctvit"] == "f" * 64
    assert found.trained_with["maskgit"] == {"ctvit": "f" * 64}


def test_another_vocabulary_is_noticed_at_once(folder, tmp_path):
    known = json.loads((folder / "provenance.json").read_text())
    known["components"]["t5"]["trained_with"] = {"tokenizer": "0" * 64}
    (folder / "provenance.json").write_text(json.dumps(known))
    with pytest.raises(ModelFolderError, match="t5 was trained with another tokenizer"):
        load_model(folder)
    (folder / "provenance.json").write_text("{")
    with pytest.raises(ModelFolderError, match=r"provenance\.json is damaged"):
        load_model(folder)


def test_the_demo_says_what_belongs_together():
    provenance = load_model(demo_folder()).provenance
    assert set(provenance.trained_with["maskgit"]) == {"ctvit", "t5", "tokenizer"}
    assert not provenance.mismatches()
    assert load_model(demo_folder()).variables("maskgit")


def test_identities_are_those_of_names_shapes_and_values():
    tree = {"params": {"a": np.arange(6.0).reshape(2, 3), "b": np.ones(2)}}
    base = identity(tree)
    assert identity(jax.tree.map(np.float32, tree)) == base
    for other in (
        {"params": {"a": np.arange(6.0).reshape(3, 2), "b": np.ones(2)}},
        {"params": {"a": np.arange(6.0).reshape(2, 3), "c": np.ones(2)}},
        {"params": {"a": np.arange(6.0).reshape(2, 3), "b": np.array([1, 1.001])}},
    ):
        assert identity(other) != base

"""Whole files of the reference: recognised, read, and given back bit for bit."""

import numpy as np
import pytest
from golden_case import FOLDER
from safetensors.numpy import load_file, save_file
from tiny_model import random_variables, tiny_config

from gct_jax.cli import main
from gct_jax.config import DiffusionConfig, VolumeConfig, override
from gct_jax.errors import ModelFolderError
from gct_jax.interop.generatect.documents import flatten_document, restore_document
from gct_jax.interop.generatect.files import read_reference, reference_document
from gct_jax.interop.torch_files import have_torch, read_torch
from gct_jax.interop.weight_files import read_weight_file
from gct_jax.model_folder import load_model, save_model

KINDS = {
    "critics_self": "self_critic",
    "ctvit": "ctvit",
    "maskgit": "maskgit",
    "maskgit_train_critic": "token_critic",
    "sampler_critic_transformer": "transformer",
    "sr_trainer": "superres",
    "superres": "superres",
    "transformer": "transformer",
    "unet": "superres",
    "unet_yaml": "superres",
    "vq_ema": "quantizer",
}
FILES = sorted(
    path.name
    for path in FOLDER.iterdir()
    if path.suffix == ".safetensors" or (path.suffix == ".pt" and have_torch())
)
needs_torch = pytest.mark.skipif(not have_torch(), reason="PyTorch is not installed")


def assert_same_bits(actual, expected):
    actual, structure = flatten_document(actual)
    expected, expected_structure = flatten_document(expected)
    assert structure == expected_structure
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        found = actual[name]
        assert (found.dtype, found.shape) == (value.dtype, value.shape), name
        assert found.tobytes() == value.tobytes(), name


@pytest.mark.parametrize("name", FILES)
def test_import_then_export_changes_no_bit(name):
    file = read_reference(FOLDER / name)
    assert file.kind == KINDS[name.partition(".")[0]]
    assert_same_bits(reference_document(file), read_weight_file(FOLDER / name))


@needs_torch
def test_trainer_checkpoint_gives_its_averaged_weights():
    file = read_reference(FOLDER / "sr_trainer.pt")
    averaged = read_reference(FOLDER / "sr_trainer.safetensors")
    assert file.config == averaged.config
    np.testing.assert_equal(file.variables, averaged.variables)
    online = read_torch(FOLDER / "sr_trainer.pt")["model"]["unets.1.final_conv.weight"]
    theirs = np.moveaxis(
        file.variables["superres"]["params"]["final_conv"]["kernel"], (2, 3), (1, 0)
    )
    assert not np.array_equal(theirs, online)


def test_self_critic_inside_a_transformer_is_not_stored_twice(tmp_path):
    state = load_file(FOLDER / "transformer.safetensors")
    critic = {f"critic.{name}": x for name, x in state.items() if name.startswith("maskgit.")}
    critic |= {
        "critic.to_pred.0.weight": np.ones((1, 32), "f"),
        "critic.to_pred.0.bias": np.ones(1, "f"),
    }
    save_file(state | critic, tmp_path / "file.safetensors")
    file = read_reference(tmp_path / "file.safetensors")
    assert not any(name.startswith("critic.maskgit.") for name in file.set_aside)
    assert_same_bits(reference_document(file), state | critic)


def test_nested_documents_are_restored_with_their_types():
    document = {"a": [np.ones(2), (1, 2.5, "x", None, True)], 3: {"b": {}}, "3b": np.zeros((0, 2))}
    tensors, structure = flatten_document(document)
    assert set(tensors) == {"a/0", "3b"}
    np.testing.assert_equal(restore_document(structure, tensors), document)


@needs_torch
def test_convert_and_export_on_the_command_line(tmp_path, capsys):
    folder, out = tmp_path / "model", tmp_path / "out"
    files = ["--transformer", str(FOLDER / "transformer.pt")]
    files += ["--superres", str(FOLDER / "sr_trainer.pt")]
    fields = ["--set", "volume.slices=3", "--set", "diffusion.image_size=256", "--set", "name=mine"]
    assert main(["convert", "generatect", *files, *fields, "--out", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "3 slices of 128 x 128" in said and "optim1 783" in said
    model = load_model(folder)
    config = model.config
    for component, file in (("maskgit", files[1]), ("ctvit", files[1]), ("superres", files[3])):
        np.testing.assert_equal(
            model.variables(component), read_reference(file).variables[component]
        )
    assert config.name == "mine"
    assert config.volume == VolumeConfig(slices=3)
    assert config.diffusion == DiffusionConfig(image_size=256)

    assert main(["export", "generatect", "--model", str(folder), "--out", str(out)]) == 0
    for name in ("transformer", "superres"):
        source = "sr_trainer" if name == "superres" else name
        assert_same_bits(read_torch(out / f"{name}.pt"), read_torch(FOLDER / f"{source}.pt"))
    averaged = load_file(FOLDER / "sr_trainer.safetensors")
    expected = {f"unets.1.{name}": value for name, value in averaged.items()}
    expected["unets.0.dummy_parameter"] = np.zeros(1, np.float32)
    assert_same_bits(load_file(out / "superres.safetensors"), expected)


def test_export_of_a_model_that_was_not_imported(tmp_path):
    folder, out = tmp_path / "model", tmp_path / "out"
    files = ["--transformer", str(FOLDER / "transformer.safetensors")]
    assert main(["convert", "generatect", *files, "--out", str(folder)]) == 0
    (folder / "set_aside.safetensors").unlink()
    assert main(["export", "generatect", "--model", str(folder), "--out", str(out)]) == 0
    original = load_file(FOLDER / "transformer.safetensors")
    exported = load_file(out / "transformer.safetensors")
    assert {k: x.shape for k, x in exported.items()} == {k: x.shape for k, x in original.items()}
    file = read_reference(out / "transformer.safetensors")
    np.testing.assert_equal(file.variables, read_reference(files[1]).variables)
    assert (out / "ctvit.safetensors").exists()


def test_a_causal_model_cannot_be_exported_to_the_reference(tmp_path, capsys):
    config = override(tiny_config(), ["maskgit=None", "t5=None", "superres=None", "diffusion=None"])
    variables = {"ctvit": random_variables(config, "ctvit")}
    save_model(tmp_path / "m", config, variables, license_text="test")
    export = ["export", "generatect", "--model", str(tmp_path / "m")]
    assert main([*export, "--out", str(tmp_path / "out")]) == 2
    assert "temporal_attention = 'causal'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_transformer_decides_between_two_ctvits(tmp_path, capsys):
    state = load_file(FOLDER / "transformer.safetensors")
    ctvit = {k.removeprefix("ctvit."): x for k, x in state.items() if k.startswith("ctvit.")}
    both = ["convert", "generatect", "--transformer", str(FOLDER / "transformer.safetensors")]
    both += ["--ctvit", str(tmp_path / "ctvit.safetensors"), "--out", str(tmp_path / "model")]
    for shift in (0, 1):
        ctvit["to_pixels.0.bias"] = ctvit["to_pixels.0.bias"] + np.float32(shift)
        save_file(ctvit, both[5])
        assert main(both) == 0
        assert ("different CT-ViTs (first in params.pixels" in capsys.readouterr().out) == shift
        found = load_model(tmp_path / "model").variables("ctvit")["params"]["pixels"]["bias"]
        np.testing.assert_array_equal(found, state["ctvit.to_pixels.0.bias"])
        out = tmp_path / f"out_{shift}"
        assert main(["export", "generatect", "--model", both[7], "--out", str(out)]) == 0
        assert_same_bits(load_file(out / "ctvit.safetensors"), ctvit)
        assert_same_bits(load_file(out / "transformer.safetensors"), state)


def test_a_file_with_two_unets_is_refused(tmp_path):
    state = load_file(FOLDER / "superres.safetensors")
    again = {k.replace("unets.1.", "unets.2."): x for k, x in state.items()}
    save_file(state | again, tmp_path / "two.safetensors")
    with pytest.raises(ModelFolderError, match=r"2 copies .*\('unets.1.', 'unets.2.'\)"):
        read_reference(tmp_path / "two.safetensors")

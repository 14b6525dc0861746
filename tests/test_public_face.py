"""What `import gct_jax` offers: lazily, typed, and the same as the command line bit for bit."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tiny_model import quick_compilation, save_tiny_model

import gct_jax
from gct_jax.cli import main
from gct_jax.errors import ConfigError, GctError, InputError, ModelFolderError
from gct_jax.reconstruction import encoding_grid
from gct_jax.volumes.grid import Grid

PROMPT = "58 years old female: Cardiomegaly."
SHORT = {"steps": 2, "superres_steps": 1}


@pytest.fixture(scope="module", autouse=True)
def compilation():
    with pytest.MonkeyPatch.context() as patch, quick_compilation():
        patch.setattr("gct_jax.runtime.compilation_cache.enable_compilation_cache", lambda: None)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return gct_jax.load_model(save_tiny_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def generated(model):
    return gct_jax.generate(model, [PROMPT, "Effusion."], seeds=[3, 4], **SHORT)


def random_ct(shape=(7, 20, 18), spacing_mm=(6.0, 4.0, 4.5)):
    values = np.random.default_rng(0).uniform(-1000, 800, shape)
    return gct_jax.CT.from_array(values, spacing_mm)


def test_importing_loads_nothing():
    lines = [
        "import sys, gct_jax",
        "print(sorted({'jax', 'flax', 'numpy', 'nibabel'} & set(sys.modules)))",
        "print(gct_jax.demo_folder().name, 'jax' in sys.modules)",
    ]
    result = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines() == ["[]", "demo True"]


def test_every_name_is_there_and_explained():
    assert set(dir(gct_jax)) == set(gct_jax.__all__)
    for name in set(gct_jax.__all__) - {"__version__"}:
        assert len(getattr(gct_jax, name).__doc__) > 30
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = gct_jax.nonsense
    assert (Path(gct_jax.__file__).parent / "py.typed").exists()


def test_the_volume_is_that_of_the_command(model, generated, tmp_path):
    out = tmp_path / "command"
    options = ["--model", str(model.folder), "--seed", "3", "--steps", "2", "--sr-steps", "1"]
    assert main(["generate", PROMPT, "--out", str(out), *options]) == 0
    generated[0].save(tmp_path / "python")
    command, python = (tmp_path / name for name in ("command", "python"))
    assert sorted(path.name for path in python.iterdir()) == sorted(p.name for p in out.iterdir())
    voxels = [np.asanyarray(nib.load(f / "volume.nii.gz").dataobj) for f in (command, python)]
    np.testing.assert_array_equal(*voxels)
    assert (command / "preview.png").read_bytes() == (python / "preview.png").read_bytes()
    told, known = (json.loads((f / "metadata.json").read_text()) for f in (command, python))
    different = {name for name in told if told[name] != known[name]}
    assert set(told) == set(known)
    assert different == {"batch", "seconds"}
    assert set(told["seconds"]) == set(known["seconds"])


def test_a_generated_ct(model, generated):
    first, second = generated
    assert first.volume_hu.shape == (5, 32, 32)
    assert first.spacing_mm == (9.0, 2.5, 2.5)
    assert first.token_ids.shape == (3, 2, 2)
    assert second.metadata["prompt"] == "Effusion."
    (alone,) = gct_jax.generate(model, ["Effusion."], seeds=[4], **SHORT)
    np.testing.assert_array_equal(alone.volume_hu, second.volume_hu)


def test_the_networks_alone_give_what_the_cascade_gives(model, generated):
    (low,) = gct_jax.generate(model, [PROMPT], seeds=[3], steps=2, superres=False)
    decoded = gct_jax.decode(model, generated[0].token_ids)
    np.testing.assert_allclose(decoded.volume_hu, low.volume_hu, atol=0.01)
    np.testing.assert_allclose(decoded.affine, low.affine)
    fine = gct_jax.super_resolve(model, low, PROMPT, seed=3, superres_steps=1)
    np.testing.assert_allclose(fine.volume_hu, generated[0].volume_hu, atol=1)
    np.testing.assert_allclose(fine.affine, generated[0].affine)
    assert fine.metadata["seed"] == 3


def test_ids_and_grid_are_those_of_the_command(model, tmp_path):
    ct = random_ct()
    ct.save(tmp_path / "ct")
    file = tmp_path / "ct" / "volume.nii.gz"
    options = ["--model", str(model.folder), "--trust-spacing"]
    arguments = ["tokens", "encode", str(file), "--out", str(tmp_path / "ids.npz"), *options]
    assert main(arguments) == 0
    read = gct_jax.CT.from_file(file, trust_spacing=True)
    assert read.metadata["stored_axes"] == "RAS"
    np.testing.assert_allclose(read.affine, ct.affine, atol=1e-5)
    np.testing.assert_array_equal(read.volume_hu, np.rint(ct.volume_hu))
    grid = encoding_grid(model.config, read, on_note=lambda note: None)  # there is no chest
    ids = gct_jax.encode(model, read, grid)
    with np.load(tmp_path / "ids.npz") as stored:
        np.testing.assert_array_equal(stored["ids"], ids)
    decoded = gct_jax.decode(model, ids, grid)
    np.testing.assert_array_equal(decoded.token_ids, ids)
    back = decoded.resampled(read.grid)
    out = tmp_path / "back.nii.gz"
    arguments = ["tokens", "decode", str(tmp_path / "ids.npz"), "--out", str(out), *options[:2]]
    assert main(arguments) == 0
    written = gct_jax.CT.from_file(out, trust_spacing=True)
    np.testing.assert_array_equal(written.volume_hu, np.rint(back.volume_hu))


def test_notes_are_warnings_at_the_caller(model):
    options = {"seeds": [0], "slices": 6, "steps": 1, "superres": False}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (ct,) = gct_jax.generate(model, [PROMPT], **options)
        gct_jax.encode(model, random_ct((1, 16, 16), (4.3, 5.0, 5.0)))
    assert ct.volume_hu.shape[0] == 7
    assert {Path(note.filename).name for note in caught} == {"test_public_face.py"}
    told = [str(note.message) for note in caught]
    for words in ("6 slices are not possible", "more than the 5", "48 % of the depth of 1 slices"):
        assert any(words in text for text in told), told
    notes = []
    gct_jax.generate(model, [PROMPT], **options, on_note=notes.append)
    assert notes == told[:2]


@pytest.mark.parametrize(
    ("error", "words", "change"),
    [
        (InputError, "list of texts", {"prompts": PROMPT}),
        (InputError, "1 prompts and 2 seeds", {"seeds": [0, 1]}),
        (InputError, "no prompts", {"prompts": [], "seeds": []}),
        (InputError, "dtype = 'half'", {"dtype": "half"}),
        (InputError, "batch = 0", {"batch": 0}),
        (InputError, "at least 1", {"slices": 0}),
        (ConfigError, "temperature = -1", {"temperature": -1.0}),
        (ConfigError, "steps = 0", {"steps": 0}),
        (ConfigError, "superres_steps = 2.5", {"superres_steps": 2.5}),
        (InputError, "seed", {"seeds": [-1]}),
        (InputError, "seed", {"seeds": [2**32]}),
        (InputError, "seed", {"seeds": [0.5]}),
    ],
)
def test_what_cannot_be_generated_is_refused(model, error, words, change):
    with pytest.raises(error, match=words):
        gct_jax.generate(model, **{"prompts": [PROMPT], "seeds": [0], **change})


def test_a_ct_is_checked():
    with pytest.raises(InputError, match="depth, height and width"):
        gct_jax.CT(np.zeros((3, 3)), np.eye(4))
    with pytest.raises(InputError, match="4 x 4"):
        gct_jax.CT(np.zeros((3, 3, 3)), np.eye(3))
    turned = np.eye(4)[[1, 0, 2, 3]]
    with pytest.raises(InputError, match="other directions"):
        gct_jax.CT(np.zeros((3, 3, 3)), np.eye(4)).resampled(Grid((3, 3, 3), turned))


def test_a_missing_network_is_named(model, tmp_path):
    alone = save_tiny_model(tmp_path / "whole")
    config = json.loads((alone / "config.json").read_text())
    for name in ("superres", "diffusion"):
        config[name] = None
    (alone / "config.json").write_text(json.dumps(config))
    (alone / "superres.safetensors").unlink()
    opened = gct_jax.load_model(alone)
    with pytest.raises(ModelFolderError, match="superres=False"):
        gct_jax.generate(opened, [PROMPT], seeds=[0])
    with pytest.raises(ModelFolderError, match="no component 'superres'"):
        gct_jax.super_resolve(opened, random_ct(), PROMPT)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, ct: gct_jax.generate("m", ["a"], seeds=[0]), "model must be of type Model"),
        (lambda m, ct: gct_jax.generate(m, ["a", 3], seeds=[0, 1]), "prompt must be of type str"),
        (lambda m, ct: gct_jax.generate(m, ["a"], seeds=3), "seeds must be a list"),
        (lambda m, ct: gct_jax.generate(m, ["a"], seeds=[0], slices=5.5), "slices must be of type"),
        (
            lambda m, ct: gct_jax.generate(m, ["a"], seeds=[0], slices=True),
            "slices must be of type",
        ),
        (lambda m, ct: gct_jax.generate(m, ["a"], seeds=[0], batch="2"), "batch must be of type"),
        (lambda m, ct: gct_jax.encode(m, "ct.nii.gz"), "ct must be of type CT, not 'ct.nii.gz'"),
        (lambda m, ct: gct_jax.super_resolve(m, ct.volume_hu, "a"), "ct must be of type CT, not a"),
        (lambda m, ct: gct_jax.super_resolve(m, ct, ["a"]), "prompt must be of type str"),
        (lambda m, ct: gct_jax.super_resolve(m, ct, None), "prompt must be of type str"),
        (lambda m, ct: gct_jax.load_model(3), "a model folder is named by a path, not by 3"),
        (lambda m, ct: gct_jax.load_model(__file__), "is a file; a model is a folder"),
    ],
)
def test_arguments_of_another_type_are_refused_by_name(model, call, message):
    ct = gct_jax.CT(np.zeros((5, 16, 16), np.float32), np.eye(4))
    with pytest.raises(GctError, match=message):
        call(model, ct)

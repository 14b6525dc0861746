"""Which copy of the weights is taken from a trainer's file, whatever the trainer calls them."""

import numpy as np
import pytest
from golden_case import FOLDER
from safetensors.numpy import load_file, save_file

from gct_jax.cli import main
from gct_jax.errors import ModelFolderError
from gct_jax.interop.generatect import files
from gct_jax.interop.generatect.copies import BUFFERS, choose_copy, is_averaged
from gct_jax.interop.generatect.documents import flatten_document
from gct_jax.interop.generatect.files import read_reference, reference_document

SOURCES = {"ctvit": "ctvit", "transformer": "transformer", "superres": "superres"}
NAMES = [
    ("state_dict", "state_dict_ema"),
    ("model", "model_ema"),
    ("net", "net_ema"),
    ("state_dict", "ema_state_dict"),
    ("model", "shadow_params"),
    ("params", "averaged"),
    ("online", "ema"),
    ("weights", "swa_weights"),
]


@pytest.fixture(params=SOURCES)
def states(request):
    """Two copies of one network: kind, online tensors, averaged ones (all larger by a half)."""
    online = load_file(FOLDER / f"{SOURCES[request.param]}.safetensors")
    averaged = {name: x + np.asarray(0.5, x.dtype) for name, x in online.items()}
    return request.param, online, averaged


def read(document, monkeypatch, **options):
    monkeypatch.setattr(files, "read_weight_file", lambda path: document)
    return read_reference("checkpoint.pt", **options)


def final_bias(file):
    """A number of the copy that was taken."""
    part, name = {
        "ctvit": ("ctvit", "pixels"),
        "transformer": ("maskgit", "to_logits"),
        "superres": ("superres", "final_conv"),
    }[file.kind]
    return np.asarray(file.variables[part]["params"][name]["bias"])


@pytest.mark.parametrize(("online_name", "averaged_name"), NAMES[-2:])
@pytest.mark.parametrize("averaged_first", [True, False])
def test_the_averaged_copy_is_taken(
    states, monkeypatch, online_name, averaged_name, averaged_first
):
    kind, online, averaged = states
    copies = [(online_name, online), (averaged_name, averaged)]
    document = {"step": 7} | dict(reversed(copies) if averaged_first else copies)
    file = read(document, monkeypatch)
    assert file.kind == kind and len(file.unchosen) == 1
    alone = read(averaged, monkeypatch)
    np.testing.assert_equal(file.variables, alone.variables)
    other = read(document, monkeypatch, copy="online")
    np.testing.assert_allclose(final_bias(file) - final_bias(other), 0.5, atol=1e-6)
    for found in (file, other):
        again, structure = flatten_document(reference_document(found))
        expected, expected_structure = flatten_document(document)
        assert structure == expected_structure
        np.testing.assert_equal(again, expected)


def test_an_average_without_names_takes_those_beside_it(states, monkeypatch):
    _, online, averaged = states
    shadow = [x for name, x in averaged.items() if not name.endswith(BUFFERS)]
    document = {"model": online, "ema": {"decay": 0.999, "shadow_params": shadow}}
    file = read(document, monkeypatch)
    other = read(document, monkeypatch, copy="online")
    np.testing.assert_allclose(final_bias(file) - final_bias(other), 0.5, atol=1e-6)
    np.testing.assert_equal(reference_document(file), document)
    document["ema"]["shadow_params"] = shadow[1:]
    with pytest.raises(ModelFolderError, match=r"is a list of .* tensors without names"):
        read(document, monkeypatch)


def test_copies_that_cannot_be_told_apart_are_refused(states, monkeypatch):
    kind, online, averaged = states
    document = {"first": online, "second": averaged}
    with pytest.raises(ModelFolderError, match="2 copies of the weights that cannot be told apart"):
        read(document, monkeypatch)
    prefix = "second/" + {"superres": "unets.1."}.get(kind, "")
    file = read(document, monkeypatch, copy=prefix)
    np.testing.assert_equal(file.variables, read(averaged, monkeypatch).variables)
    with pytest.raises(ModelFolderError, match="no copy 'third' of the weights; its copies are"):
        read(document, monkeypatch, copy="third")
    with pytest.raises(ModelFolderError, match="no copy 'averaged'"):
        read(online, monkeypatch, copy="averaged")


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "module._orig_mod."])
def test_wrappers_in_names_are_read_and_given_back(states, monkeypatch, wrapper):
    _, online, _ = states
    document = {wrapper + name: value for name, value in online.items()}
    file = read(document, monkeypatch)
    np.testing.assert_equal(file.variables, read(online, monkeypatch).variables)
    assert not file.set_aside.keys() & document.keys()
    np.testing.assert_equal(reference_document(file), document)
    inside = {name.replace(".", "._orig_mod.", 1): value for name, value in online.items()}
    file = read(inside, monkeypatch)
    np.testing.assert_equal(file.variables, read(online, monkeypatch).variables)
    np.testing.assert_equal(reference_document(file), inside)


@pytest.mark.parametrize(
    ("prefix", "averaged"),
    [
        ("ema/1.ema_model.", True),
        ("ema/1.online_model.", False),
        ("model_ema/module.", True),
        ("EMA/", True),
        ("schema/", False),
        ("unets.1.", False),
        ("net/", False),
    ],
)
def test_names_of_averages(prefix, averaged):
    assert is_averaged(prefix) is averaged


@pytest.mark.parametrize(("online_name", "averaged_name"), NAMES)
def test_pairs_of_names(online_name, averaged_name):
    pair = [f"{online_name}/unets.1.", f"{averaged_name}/unets.1."]
    for prefixes in (pair, pair[::-1]):
        assert choose_copy(prefixes, None) == choose_copy(prefixes, "averaged") == pair[1]
        assert choose_copy(prefixes, "online") == pair[0]


def test_every_assumption_is_printed(tmp_path, capsys):
    state = load_file(FOLDER / "superres.safetensors")
    save_file(state, tmp_path / "one.safetensors")
    command = ["convert", "generatect", "--superres", str(tmp_path / "one.safetensors")]
    command += ["--set", "superres.resnet_groups=(8, 8)", "--out", str(tmp_path / "m")]
    assert main(command) == 0
    said = capsys.readouterr().out
    for field in ("scale_skip_connection=True", "cosine_sim_attn=False", "self_cond=False"):
        assert f"assumed: --set 'superres.{field}'" in said
    assert (
        "superres.use_linear_cross_attn=False" in said and "superres.cond_images_channels=0" in said
    )
    assert "superres.resnet_groups" not in said
    assert "assumed: --set 'diffusion.objective=v'" in said
    assert "assumed: --set 'volume.slices=201'" in said

"""Names of earlier versions in model folders, run folders and overrides."""

import json
import shutil

import pytest
from tiny_model import save_tiny_model, tiny_config

from configs import tiny
from gct_jax.config import from_dict, override, to_dict
from gct_jax.errors import ConfigError
from gct_jax.model_folder import load_model
from gct_jax.training.config import TrainConfig


@pytest.fixture(scope="module")
def first_format(tmp_path_factory):
    """A model folder as format_version 1 wrote it."""
    folder = save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    path = folder / "config.json"
    values = json.loads(path.read_text())
    assert values["format_version"] == 2
    values |= {"format_version": 1, "unet": values.pop("superres")}
    del values["critic"], values["ctvit"]["kind"], values["diffusion"]["process"]
    sampling = values["sampling"]
    del sampling["critic_noise"], sampling["critic_noise_schedule"]
    sampling["superres_noise_depth_mm"] = sampling.pop("superres_noise_correlation_mm")
    path.write_text(json.dumps(values))
    known = json.loads((folder / "provenance.json").read_text())
    (folder / "provenance.json").write_text(json.dumps({"parts": known["components"]}))
    return folder


def test_a_model_folder_of_the_first_format_is_read_with_a_note(first_format):
    with (
        pytest.warns(UserWarning, match="superres_noise_depth_mm is called superres_noise_corr"),
        pytest.warns(UserWarning, match=r"config\.unet is called superres now"),
    ):
        model = load_model(first_format)
    assert model.config == tiny_config()
    assert set(model.provenance.trained_with) == set()
    assert model.variables("superres")["params"]


def test_a_format_to_come_is_refused(first_format, tmp_path):
    folder = shutil.copytree(first_format, tmp_path / "model")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"format_version": 3}))
    with pytest.raises(Exception, match=r"config\.json is not of format_version 1 or 2"):
        load_model(folder)


def test_old_overrides_mean_the_new_ones_and_are_told():
    notes = []
    old = ["recompute=True", "ctvit.twins=True", "ctvit.twin_weight=2.0", "model.unet.dim=16"]
    old += ["maskgit.steps=7", "maskgit.gradient_shrink=0.1"]
    new = ["remat=True", "ctvit.counterfactual_pairs=True", "ctvit.counterfactual_weight=2.0"]
    new += ["model.superres.dim=16", "maskgit.mask_levels=7", "maskgit.scale_gradient=0.1"]
    config = override(tiny.ctvit(), old, on_note=notes.append)
    assert config == override(tiny.ctvit(), new)
    assert notes[0] == "override 'recompute': recompute is called remat now"
    assert len(notes) == len(old)


def test_a_run_folder_of_earlier_versions_is_read():
    values = to_dict(tiny.ctvit())
    values["recompute"] = values.pop("remat")
    values["ctvit"]["principal_start"] = 0
    notes = []
    assert from_dict(TrainConfig, values, on_note=notes.append) == tiny.ctvit()
    assert "config.ctvit.principal_start = 0 is an option of earlier versions" in notes[1]


def test_the_old_name_beside_the_new_one_is_refused():
    values = to_dict(tiny.ctvit()) | {"recompute": True}
    with pytest.raises(ConfigError, match="config has both remat and recompute"):
        from_dict(TrainConfig, values)

"""The whole cascade with every setting away from its default, as it was recorded: tokens, volume in
HU on disk, preview; and each setting of the super-resolution on its way there."""

import dataclasses
import json

import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pinned_run
import pytest
from PIL import Image
from tiny_model import quick_compilation, random_variables, save_tiny_model, tiny_config

from gct_jax.cli import main
from gct_jax.components import present_components
from gct_jax.config import DiffusionConfig, SamplingConfig
from gct_jax.model_folder import load_model, save_model
from gct_jax.random_keys import random_key
from gct_jax.sampling import cascade
from gct_jax.sampling.settings import SuperresSettings, choose_settings

SAMPLING = SamplingConfig(
    steps=4,
    temperature=1.7,
    guidance=2.5,
    superres_steps=3,
    superres_guidance=1.8,
    superres_solver="sde-dpm++",
    superres_noise_correlation_mm=30.0,
)
DIFFUSION = DiffusionConfig(
    image_size=32,
    objective="noise",
    noise_schedule="linear",
    low_res_noise_schedule="cosine",
    low_res_noise_level=0.35,
    dynamic_thresholding_percentile=0.8,
)
PROMPT = "58 years old female: Large left pleural effusion."


@pytest.fixture(scope="module", autouse=True)
def compilation():
    with quick_compilation():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model of every component with these settings."""
    base = save_tiny_model(tmp_path_factory.mktemp("models") / "base")
    config = dataclasses.replace(
        tiny_config(),
        sampling=SAMPLING,
        diffusion=DIFFUSION,
        superres=dataclasses.replace(tiny_config().superres, self_cond=True),
    )
    variables = {
        component: random_variables(config, component, seed=3)
        for component in present_components(config)
    }
    vocabulary = (base / "tokenizer.model").read_bytes()
    save_model(base.with_name("pinned"), config, variables, vocabulary, license_text="test")
    return base.with_name("pinned")


def test_pinned_cascade(folder, tmp_path, monkeypatch):
    out, given_back = tmp_path / "out", []
    monkeypatch.setattr(cascade, "give_back_freed_memory", lambda: given_back.append(1))
    arguments = ["generate", PROMPT, "--model", str(folder), "--seed", "11", "--slices", "7"]
    assert main([*arguments, "--out", str(out)]) == 0
    image = nib.load(out / "volume.nii.gz")
    with Image.open(out / "preview.png") as picture:
        preview = np.asarray(picture.convert("L").resize((60, 62)), np.float64)
    found = json.loads((out / "metadata.json").read_text())
    volume = image.get_fdata()
    results = {
        "volume": {
            "shape": list(image.shape),
            "affine": image.affine.ravel().tolist(),
            "hu": volume[::9, ::9].ravel().tolist(),
            "summary": pinned_run.summary({"hu": volume})["['hu']"],
        },
        "preview": {"grey": preview.ravel().tolist()},
        "settings": {
            name: found[name] for name in ("steps", "temperature", "guidance", "superres_steps",
            "superres_guidance", "superres_noise_correlation_mm", "slices", "seed")
        },
    }  # fmt: skip
    pinned_run.check("cascade", results, tolerance=0.01)
    assert given_back  # before the U-Net, which needs the most memory


def test_every_setting_is_away_from_its_default():
    for settings in (SAMPLING, DIFFUSION):
        for field in dataclasses.fields(settings):
            if field.name not in ("p2_loss_weight_gamma", "p2_loss_weight_k"):  # of training
                # another percentile instead; other tests sample with a critic and with EDM
                elsewhere = (
                    "dynamic_thresholding",
                    "critic_noise",
                    "critic_noise_schedule",
                    "process",
                )
                if field.name in elsewhere:
                    continue
                assert getattr(settings, field.name) != field.default, field.name


@pytest.fixture
def handed_over(folder, monkeypatch):
    """What `super_resolve` gives to the sampler of slices, for a model and settings."""

    def call():
        seen = {}

        def record(apply, volumes, text, mask, keys, settings, **options):
            seen.update(settings=settings, text=text, keys=len(keys))
            return np.zeros((*volumes.shape[:2], 32, 32, 1), np.float32)

        monkeypatch.setattr(cascade, "super_resolve_slices", record)
        model = load_model(folder)
        settings = choose_settings(model.config)
        text = jnp.zeros((1, 4, 16))
        volumes = np.zeros((1, 5, 16, 16, 1), np.float32)
        cascade.super_resolve(
            model, volumes, text, jnp.ones((1, 4), bool), [random_key(0)], settings
        )
        return seen

    return call


def test_settings_arrive_at_the_super_resolution(handed_over):
    seen = handed_over()
    assert seen["settings"] == SuperresSettings(
        diffusion=DIFFUSION,
        steps=SAMPLING.superres_steps,
        guidance=SAMPLING.superres_guidance,
        solver=SAMPLING.superres_solver,
        self_cond=True,
        noise_correlation=30.0 / 9.0,  # mm over the spacing of slices
    )
    assert seen["text"].shape == (1, 4, 16)


def test_a_users_choice_goes_before_the_models():
    config = dataclasses.replace(tiny_config(), sampling=SAMPLING)
    own = choose_settings(config)
    for field in dataclasses.fields(SamplingConfig):
        assert getattr(own, field.name) == getattr(SAMPLING, field.name)
    chosen = choose_settings(
        config, slices=3, steps=9, temperature=0.0, guidance=1.0, superres=False, superres_steps=5
    )
    changes = {"steps": 9, "temperature": 0.0, "guidance": 1.0, "superres_steps": 5}
    expected = dataclasses.replace(own, **changes, slices=3, superres=False)
    assert chosen == expected
    assert choose_settings(config, steps=None) == own

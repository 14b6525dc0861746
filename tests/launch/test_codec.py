"""A codec of one's own instead of CT-ViT: MaskGIT is trained and generates with its tokens."""

import dataclasses

import jax
import numpy as np
import pytest
from block_codec import ROW, BlockCodecConfig
from tiny_model import quick_compilation

import gct_jax
from configs import tiny
from gct_jax.components import init_component
from gct_jax.config import CODECS, ModelConfig, from_dict, to_dict
from gct_jax.errors import ConfigError
from gct_jax.model_folder import save_model
from launch import export_model, train

BLOCKS = BlockCodecConfig(codebook_size=32, patch_size=8, temporal_patch_size=2)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(CODECS, "blocks", ROW)
    with quick_compilation():
        yield


def test_maskgit_learns_the_tokens_of_another_codec_and_generates_with_it(tmp_path):
    absent = dict.fromkeys(("maskgit", "t5", "superres", "diffusion"))
    config = dataclasses.replace(tiny.model(), ctvit=BLOCKS, **absent)
    variables = {"ctvit": init_component(config, "ctvit", jax.random.key(0))}
    save_model(tmp_path / "codec", config, variables, license_text="test")

    run = ["--config", "configs/tiny.py:maskgit", "--workdir", str(tmp_path / "maskgit")]
    run += ["--from", str(tmp_path / "codec"), "data.source=ball_source:Balls", "loop.steps=4"]
    run += ["loop.mesh=[1, 1, 1]"]
    assert train.main(run) == 0

    folders = [str(tmp_path / name) for name in ("codec", "maskgit")]
    assert export_model.main([*folders, "--out", str(tmp_path / "model")]) == 0
    model = gct_jax.load_model(tmp_path / "model")
    assert model.config.ctvit == BLOCKS
    prompts, seeds = ["58 years old female: Cardiomegaly."], [0]
    (ct,) = gct_jax.generate(model, prompts, seeds=seeds, superres=False)
    assert ct.volume_hu.shape == (5, 16, 16) and ct.token_ids.shape == (3, 2, 2)
    levels_hu = np.linspace(-1000, 1000, 32)
    painted = levels_hu[ct.token_ids].repeat(2, 0).repeat(8, 1).repeat(8, 2)[1:]
    np.testing.assert_allclose(ct.volume_hu, painted, atol=1)  # weights of 16 bits
    np.testing.assert_array_equal(gct_jax.encode(model, ct), ct.token_ids)


def test_a_codec_of_no_row_is_refused_by_name():
    values = to_dict(ModelConfig(ctvit=BLOCKS))
    assert from_dict(ModelConfig, values).ctvit == BLOCKS
    values["ctvit"]["kind"] = "octree"
    with pytest.raises(ConfigError, match=r"ctvit.kind = 'octree' is none of ctvit, blocks"):
        from_dict(ModelConfig, values)

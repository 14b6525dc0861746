"""Options of the reference that its weights do not tell: read by option, refused or told otherwise.

What these networks compute is compared with the peers in tests/models; here files of our own
export, whose layouts the golden files pin, go out and in.
"""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from golden_case import FOLDER, quick_jit
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tiny_model import random_variables, tiny_config

from gct_jax.cli import main
from gct_jax.components import build_component, joined_variables
from gct_jax.config import CTViTConfig, MaskGitConfig, ModelConfig
from gct_jax.errors import ConfigError, InputError, ModelFolderError
from gct_jax.interop.generatect.ctvit import (
    REFERENCE_OPTIONS,
    ctvit_from_reference,
    ctvit_to_reference,
    discriminator_from_reference,
    discriminator_layout,
)
from gct_jax.interop.generatect.files import read_reference
from gct_jax.interop.generatect.maskgit import maskgit_from_reference, maskgit_to_reference
from gct_jax.interop.generatect.unet import (
    require_reference_unet,
    unet_from_reference,
    unet_layout,
    unet_to_reference,
)
from gct_jax.model_folder import load_model
from gct_jax.models.ctvit import CTViT, to_patches

SMALL = CTViTConfig(
    **{"dim": 16, "codebook_size": 32, "spatial_depth": 1, "temporal_depth": 1, "heads": 2},
    **{"dim_head": 8, "temporal_patch_size": 2, "patch_size": 8, **REFERENCE_OPTIONS},
)


def ctvit_state(**changes):
    config = dataclasses.replace(SMALL, **changes)
    return config, random_variables(ModelConfig(ctvit=config), "ctvit")


@pytest.mark.parametrize(("patch_size", "channels"), [((4, 6), 1), ((4, 9), 1), ((6, 4), 2)])
def test_rectangular_patches(tmp_path, patch_size, channels):
    config, variables = ctvit_state(patch_size=patch_size, channels=channels)
    state = ctvit_to_reference(config, variables)
    options = {"patch_size": patch_size, "channels": channels}
    found = ctvit_from_reference(state, **options)
    assert found[0] == config
    jax.tree.map(np.testing.assert_array_equal, found[1], variables)
    save_file(state, tmp_path / "ctvit.safetensors")
    file = read_reference(tmp_path / "ctvit.safetensors", ctvit_options=options)
    assert file.config["ctvit"] == config and file.assumed == {"ctvit": {}}
    if patch_size == (4, 9):  # 36 values might be 6 x 6, so this is told
        assumed = read_reference(tmp_path / "ctvit.safetensors").assumed["ctvit"]
        assert assumed == {"channels": 1, "patch_size": 6}
    else:
        with pytest.raises(ModelFolderError, match=r"--set 'ctvit\.patch_size=\(HEIGHT, WIDTH\)'"):
            read_reference(tmp_path / "ctvit.safetensors")


def test_a_rectangular_patch_is_cut_row_by_row():
    """The network on a transposed volume equals the one with transposed patches and weights."""
    config, variables = ctvit_state(patch_size=(4, 6))
    turned = dataclasses.replace(config, patch_size=(6, 4))
    volume = np.random.default_rng(0).normal(size=(1, 3, 8, 6, 1)).astype(np.float32)

    def patches(config, volume):
        sizes = {"patch_size": config.patch_size, "temporal_patch_size": 2}
        return to_patches(volume, **sizes)[0]

    upright = np.asarray(patches(config, volume)).reshape(1, 2, 4, 6)
    lying = np.asarray(patches(turned, volume.swapaxes(2, 3))).reshape(1, 2, 6, 4)
    np.testing.assert_array_equal(upright, lying.swapaxes(2, 3))
    np.testing.assert_array_equal(upright[0, 0], volume[0, 0, :4, :, 0])
    network = build_component(ModelConfig(ctvit=config), "ctvit")
    run = functools.partial(network.apply, variables)
    ids = jax.eval_shape(functools.partial(run, method=CTViT.encode), volume)
    assert ids.shape == (1, 2, 2, 1)
    assert jax.eval_shape(functools.partial(run, method=CTViT.decode), ids).shape == volume.shape


def test_patches_on_the_command_line(tmp_path, capsys):
    config, variables = ctvit_state(patch_size=(4, 8))
    save_file(ctvit_to_reference(config, variables), tmp_path / "ctvit.safetensors")
    command = ["convert", "generatect", "--ctvit", str(tmp_path / "ctvit.safetensors")]
    command += ["--out", str(tmp_path / "model"), "--set"]
    assert main([*command, "ctvit.patch_size=(4, 8)"]) == 0
    assert load_model(tmp_path / "model").config.ctvit.patch_size == (4, 8)
    assert main([*command, "ctvit.patch_size=(4, 0)"]) == 2
    assert "ctvit.patch_size = (4, 0) holds 0" in capsys.readouterr().err
    assert main([*command, "ctvit.patch_size=(4, 8, 2)"]) == 2
    assert "must have 2 entries" in capsys.readouterr().err


@pytest.mark.parametrize("sizes", [(32,), (32, 16), (64, 8), ()])
def test_discriminators_with_attention_elsewhere(sizes):
    layout = discriminator_layout(1, sizes)
    rng = np.random.default_rng(0)
    flat = {name: rng.normal(size=shape).astype("f") for name, shape in layout.shapes.items()}
    variables = unflatten_dict(flat, sep=".")
    state = {f"discr.{name}": x for name, x in layout.to_reference(variables).items()}
    attributes, params = discriminator_from_reference(state)
    assert attributes == {"base_dim": 1, "attention_sizes": tuple(sorted(sizes, reverse=True))}
    jax.tree.map(np.testing.assert_array_equal, params, variables["params"])


def unet_state(**changes):
    config = dataclasses.replace(
        tiny_config().superres,
        **{"channels_out": 1, "mid_cross_attn_heads": 8, "mid_cross_attn_dim_head": 64, **changes},
    )
    variables = random_variables(ModelConfig(superres=config), "superres")
    return config, variables, unet_to_reference(config, variables)


TWO_LEVELS = {
    "dim_mults": (1, 2),
    "num_resnet_blocks": (1, 1),
    "layer_attns": ("none", "none"),
    "layer_attns_depth": (1, 1),
    "layer_cross_attns": (True, True),
    "resnet_groups": (4, 4),
}
GIVEN = {"resnet_groups": (4, 4), "attn_dim_head": 8}


@pytest.mark.parametrize("linear", [(True, False), (False, True), True, False])
def test_linear_cross_attention_per_level(tmp_path, linear):
    config, variables, state = unet_state(**TWO_LEVELS, use_linear_cross_attn=linear)
    found = unet_from_reference(state, **GIVEN, use_linear_cross_attn=linear)
    assert found[0] == config
    jax.tree.map(np.testing.assert_array_equal, found[1], variables)
    save_file(state, tmp_path / "unet.safetensors")
    options = {**GIVEN, "use_linear_cross_attn": linear}
    file = read_reference(tmp_path / "unet.safetensors", unet_options=options)
    assert file.config["superres"].use_linear_cross_attn == linear
    with pytest.raises(ConfigError, match="use_linear_cross_attn has 3 entries"):
        unet_from_reference(state, **GIVEN, use_linear_cross_attn=(True, False, True))


def test_levels_are_linear_each_for_itself():
    """A level's own setting decides, not whether the tuple is empty."""
    outputs = []
    x = np.random.default_rng(1).normal(size=(1, 16, 16, 1)).astype("f")
    for linear in (False, (True, False), (False, True)):
        config, variables, _ = unet_state(**TWO_LEVELS, use_linear_cross_attn=linear)
        unet = build_component(ModelConfig(superres=config), "superres")
        condition = {"low_res": x, "low_res_log_snr": np.zeros(1, "f")}
        text = np.random.default_rng(2).normal(size=(1, 5, config.text_embed_dim)).astype("f")
        run = functools.partial(unet.apply, text=text, **condition)
        outputs.append(np.asarray(quick_jit(run)(variables, x, np.zeros(1, "f"))))
    for i, first in enumerate(outputs):
        for second in outputs[i + 1 :]:
            assert np.abs(first - second).max() > 1e-4


def test_depth_of_the_middle_attention_and_kernel_are_read_off(tmp_path):
    config, variables, state = unet_state(
        attend_at_middle=True, layer_mid_attns_depth=2, init_conv_kernel_size=5
    )
    found = unet_from_reference(state, resnet_groups=(4,))
    assert found[0] == config
    jax.tree.map(np.testing.assert_array_equal, found[1], variables)


def test_width_of_the_feed_forward_layers_is_read_off():
    config = MaskGitConfig(
        **{"num_tokens": 32, "max_sequence_length": 24, "dim": 16, "context_dim": 16},
        **{"depth": 1, "heads": 2, "dim_head": 8, "ff_dim": 21},
    )
    variables = random_variables(ModelConfig(maskgit=config), "maskgit")
    found = maskgit_from_reference(maskgit_to_reference(config, variables))
    assert found[0] == config
    jax.tree.map(np.testing.assert_array_equal, found[1], variables)


def test_errors_name_the_option():
    _, _, state = unet_state(layer_cross_attns=(False,), attn_pool_text=True)
    with pytest.raises(ModelFolderError, match=r"attn_dim_head = 64 does not divide the 16"):
        unet_from_reference(state, resnet_groups=(4,))
    with pytest.raises(ModelFolderError, match=r"--set superres\.cond_images_channels=N"):
        unet_from_reference(state, resnet_groups=(4,), attn_dim_head=8, cond_images_channels=1)


def test_only_what_cannot_be_read_off_is_an_option():
    path = FOLDER / "superres.safetensors"
    with pytest.raises(ConfigError, match=r"superres\.dim is unknown; fields are: attn_dim_head"):
        read_reference(path, unet_options={"dim": 3})
    with pytest.raises(ConfigError, match=r"ctvit\.heads is unknown"):
        read_reference(path, ctvit_options={"heads": 3})
    with pytest.raises(ConfigError, match=r"superres\.cosine_sim_attn must be of type bool"):
        read_reference(path, unet_options={"cosine_sim_attn": 1})


def test_what_the_reference_cannot_load_is_not_exported(tmp_path, capsys):
    unet = dataclasses.replace(tiny_config().superres, mid_cross_attn_heads=2)
    with pytest.raises(InputError, match="attention has 2 heads of 8, only one with 8 heads"):
        require_reference_unet(unet)
    assert main(["export", "generatect", "--out", str(tmp_path / "out")]) == 2  # the demo
    assert "middle attention has 4 heads of 16" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_unet_without_text_has_the_pooling_that_the_reference_stores():
    config, variables, state = unet_state(text_embed_dim=None, attn_pool_text=True)
    pooled = {name: x.shape for name, x in state.items() if name.startswith("attn_pool.")}
    assert len(pooled) == 5 + 2 * 13
    with_text = dataclasses.replace(config, text_embed_dim=16)
    expected = unet_layout(with_text)._their_shapes()
    assert pooled == {n: shape for n, shape in expected.items() if n.startswith("attn_pool.")}
    found = unet_from_reference(state, resnet_groups=(4,), attn_dim_head=8)
    jax.tree.map(np.testing.assert_array_equal, found[1], variables)


@pytest.mark.parametrize(
    ("name", "option"),
    [("maskgit_train_critic", "critic"), ("critics_self", "critic"), ("vq_ema", "quantizer")],
)
def test_critics_and_codebooks_convert_and_come_back(tmp_path, name, option):
    source = FOLDER / f"{name}.safetensors"
    command = ["convert", "generatect", f"--{option}", str(source), "--out", str(tmp_path / "m")]
    assert main(command) == 0
    file = read_reference(source)
    if file.kind == "self_critic":  # which holds its MaskGIT
        model = load_model(tmp_path / "m")
        assert model.config.critic.kind == "self" and model.config.maskgit == file.config[file.kind]
        params = file.variables[file.kind]["params"]
        assert set(model.variables("critic")["params"]) == {"to_score"}
        joined = joined_variables(
            model.config, "critic", {n: model.variables(n) for n in ("maskgit", "critic")}
        )
        np.testing.assert_equal(jax.device_get(joined), {"params": params})
    else:
        with safe_open(tmp_path / "m" / f"{file.kind}.safetensors", "numpy") as written:
            assert json.loads(written.metadata()["config"])
            for path in written.keys():  # noqa: SIM118 - an open file, not a dict
                value = file.variables[file.kind]
                for key in path.split("."):
                    value = value[key]
                np.testing.assert_array_equal(written.get_tensor(path), value)
    assert (
        main(["export", "generatect", "--model", str(tmp_path / "m"), "--out", str(tmp_path / "o")])
        == 0
    )
    back, original = load_file(tmp_path / "o" / f"{file.kind}.safetensors"), load_file(source)
    np.testing.assert_equal(back, original)


@pytest.mark.parametrize("name", ["sampler_critic_transformer", "self"])
def test_a_transformers_critic_is_a_component_that_comes_back(tmp_path, name):
    if name == "self":
        state = load_file(FOLDER / "transformer.safetensors")
        again = {f"critic.{key}": x for key, x in state.items() if key.startswith("maskgit.")}
        score = {"weight": np.full((1, 32), 0.5, "f"), "bias": np.ones(1, "f")}
        source = tmp_path / "transformer.safetensors"
        save_file(
            state | again | {f"critic.to_pred.0.{key}": x for key, x in score.items()}, source
        )
    else:
        source = FOLDER / f"{name}.safetensors"
    command = ["convert", "generatect", "--transformer", str(source), "--out", str(tmp_path / "m")]
    assert main(command) == 0
    model = load_model(tmp_path / "m")
    assert model.config.critic.kind == ("self" if name == "self" else "token")
    file = read_reference(source)
    np.testing.assert_equal(jax.device_get(model.variables("critic")), file.variables["critic"])
    assert model.provenance.trained_with["critic"]["maskgit"]
    out = tmp_path / "o"
    assert main(["export", "generatect", "--model", str(tmp_path / "m"), "--out", str(out)]) == 0
    np.testing.assert_equal(load_file(out / "transformer.safetensors"), load_file(source))


def test_a_critic_of_another_maskgit_is_refused(tmp_path, capsys):
    files = ["--transformer", str(FOLDER / "transformer.safetensors")]
    files += ["--critic", str(FOLDER / "critics_self.safetensors")]
    assert main(["convert", "generatect", *files, "--out", str(tmp_path / "m")]) == 2
    assert "--critic scores another MaskGIT" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()

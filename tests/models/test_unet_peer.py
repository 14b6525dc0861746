"""Options without recorded outputs, against imagen-pytorch 1.21.6 where it is installed.

Its U-Net has the names and outputs of the reference's.
"""

import numpy as np
import pytest
from golden_case import quick_jit
from hypothesis import given, settings
from hypothesis import strategies as st
from peer_packages import assert_restored, fill_randomly, require, state_of

from gct_jax.config import module_fields
from gct_jax.interop.generatect.unet import unet_from_reference, unet_to_reference
from gct_jax.models.unet import UNet
from launch.benchmark.peer_imports import peer_module

torch = pytest.importorskip("torch")
pytestmark = require("imagen_pytorch", "einops_exts", "beartype")


@pytest.fixture(scope="module")
def peer():
    """The peer's U-Net module alone: the rest of its package asks for a model hub and more."""
    with peer_module("imagen_pytorch") as module, pytest.MonkeyPatch.context() as patch:
        # It passes the kernel sizes of cross-embed down-sampling twice; name the rest instead.
        layer = module.CrossEmbedLayer
        patch.setattr(
            module,
            "CrossEmbedLayer",
            lambda dim_in, dim_out=None, *, kernel_sizes, stride=2: layer(
                dim_in, kernel_sizes, dim_out=dim_out, stride=stride
            ),
        )
        yield module


VARIANTS = {
    "base model without text, self attention, seven by seven, nearest": (
        {
            "dim_mults": (1, 2),
            "num_resnet_blocks": (1, 2),
            "layer_attns": (False, True),
            "layer_attns_depth": (1, 2),
            "layer_cross_attns": False,
            "attend_at_middle": True,
            "ff_mult": 3.0,
            "init_cross_embed": False,
            "pixel_shuffle_upsample": False,
            "scale_skip_connection": False,
            "use_global_context_attn": False,
            "cond_on_text": False,
            "memory_efficient": False,
        },
        {"scale_skip_connection": False},
    ),
    "cosine, linear self attention, all images, all residuals, cross-embed": (
        {
            "dim_mults": (1, 2),
            "num_resnet_blocks": 1,
            "layer_attns": (True, False),
            "use_linear_attn": True,
            "attend_at_middle": True,
            "cosine_sim_attn": True,
            "init_dim": 16,
            "cond_dim": 12,
            "lowres_cond": True,
            "self_cond": True,
            "cond_images_channels": 3,
            "cross_embed_downsample": True,
            "combine_upsample_fmaps": True,
            "channels_out": 2,
            "resnet_groups": 4,
            "memory_efficient": False,
        },
        {
            "cosine_sim_attn": True,
            "self_cond": True,
            "cond_images_channels": 3,
            "resnet_groups": (4, 4),
        },
    ),
    "linear cross attention, unpooled text, residual, no final block": (
        {
            "dim_mults": (1, 2),
            "num_resnet_blocks": 1,
            "layer_attns": False,
            "layer_cross_attns": (False, True),
            "use_linear_cross_attn": (False, True),
            "attend_at_middle": False,
            "attn_pool_text": False,
            "lowres_cond": True,
            "num_time_tokens": 3,
            "init_conv_to_final_conv_residual": True,
            "final_resnet_block": False,
            "memory_efficient": True,
        },
        {"use_linear_cross_attn": True},
    ),
    "linear and ordinary cross attention, two middle layers, five by five": (
        {
            "dim_mults": (1, 2),
            "num_resnet_blocks": 1,
            "layer_attns": False,
            "layer_cross_attns": True,
            "use_linear_cross_attn": (True, False),
            "attend_at_middle": True,
            "layer_mid_attns_depth": 2,
            "init_cross_embed": False,
            "init_conv_kernel_size": 5,
            "lowres_cond": True,
        },
        {"use_linear_cross_attn": (True, False)},
    ),
    "ordinary and linear cross attention": (
        {
            "dim_mults": (1, 2),
            "num_resnet_blocks": 1,
            "layer_attns": False,
            "layer_cross_attns": True,
            "use_linear_cross_attn": (False, True),
            "lowres_cond": True,
        },
        {"use_linear_cross_attn": (False, True)},
    ),
}


def assert_same_outputs(model, config, variables):
    """Both networks on the same random inputs, whichever of them the options ask for."""
    draw = np.random.default_rng(1)
    images = {"x": (2, 1, 16, 16)}
    if config.lowres_cond:
        images["low_res"] = (2, 1, 16, 16)
    if config.self_cond:
        images["self_cond"] = (2, 1, 16, 16)
    if config.cond_images_channels:
        images["cond_images"] = (2, 3, 16, 16)
    images = {name: draw.normal(size=shape).astype("f") for name, shape in images.items()}
    log_snr = np.array([-1.5, 0.8], "f")
    vectors = {"low_res_log_snr": np.array([1.0, 3.0], "f")} if config.lowres_cond else {}
    if config.text_embed_dim:
        vectors["text"] = draw.normal(size=(2, 7, config.text_embed_dim)).astype("f")
        vectors["text_mask"] = np.arange(7) < np.array([[4], [7]])

    peer_names = {
        "low_res": "lowres_cond_img",
        "low_res_log_snr": "lowres_noise_times",
        "text": "text_embeds",
    }
    inputs = {
        peer_names.get(name, name): torch.from_numpy(np.array(value))
        for name, value in (images | vectors).items()
    }
    with torch.no_grad():
        expected = model(inputs.pop("x"), torch.from_numpy(log_snr), cond_drop_prob=0.0, **inputs)

    channel_last = {name: np.moveaxis(value, 1, -1) for name, value in images.items()}
    unet = UNet(**module_fields(config))
    run = quick_jit(lambda variables, x, **inputs: unet.apply(variables, x, log_snr, **inputs))
    output = run(variables, channel_last.pop("x"), **channel_last, **vectors)
    scale = float(expected.abs().max())
    np.testing.assert_allclose(
        np.moveaxis(np.asarray(output), -1, 1), expected.numpy(), atol=5e-5 * max(1, scale)
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_equal_the_peer(peer, variant):
    options, not_inferable = VARIANTS[variant]
    text_width = None if options.get("cond_on_text") is False else 20
    model = peer.Unet(
        channels=1,
        dim=8,
        attn_heads=2,
        attn_dim_head=8,
        max_text_len=10,
        attn_pool_num_latents=6,
        **({"text_embed_dim": text_width} if text_width else {}),
        **options,
    ).eval()
    fill_randomly(model, 0)
    state = state_of(model)
    config, variables = unet_from_reference(state, **not_inferable)
    unread = () if text_width else ("attn_pool.", "null_text_")  # stored, but without text idle
    kept = {name: value for name, value in state.items() if name.startswith(unread)}
    assert_restored(model, unet_to_reference(config, variables, kept))

    assert_same_outputs(model, config, variables)


@settings(max_examples=8, deadline=None, derandomize=True, database=None)
@given(
    st.fixed_dictionaries(
        {
            "dim": st.sampled_from([8, 16]),
            "dim_mults": st.sampled_from([(1,), (1, 2), (1, 3, 4)]),
            "num_resnet_blocks": st.integers(1, 2),
            "layer_attns": st.booleans(),
            "layer_attns_depth": st.integers(1, 2),
            "use_linear_attn": st.booleans(),
            "layer_cross_attns": st.booleans(),
            "attend_at_middle": st.booleans(),
            "lowres_cond": st.booleans(),
            "cond_on_text": st.booleans(),
            "attn_pool_text": st.booleans(),
            "cond_dim": st.sampled_from([None, 12]),
            "num_time_tokens": st.integers(1, 3),
            "init_cross_embed": st.booleans(),
            "cross_embed_downsample": st.booleans(),
            "memory_efficient": st.booleans(),
            "pixel_shuffle_upsample": st.booleans(),
            "combine_upsample_fmaps": st.booleans(),
            "init_conv_to_final_conv_residual": st.booleans(),
            "use_global_context_attn": st.booleans(),
            "final_resnet_block": st.booleans(),
        }
    )
)
def test_any_options_are_inferred_and_give_back_every_tensor(peer, options):
    text = {"text_embed_dim": 20} if options["cond_on_text"] else {}
    model = peer.Unet(channels=1, attn_heads=2, attn_dim_head=8, max_text_len=10, **text, **options)
    fill_randomly(model, 0)
    state = state_of(model)
    config, variables = unet_from_reference(state, attn_dim_head=8)
    assert config.dim_mults == options["dim_mults"]
    unread = () if text else ("attn_pool.", "null_text_")
    kept = {name: value for name, value in state.items() if name.startswith(unread)}
    assert_restored(model, unet_to_reference(config, variables, kept))
    assert_same_outputs(model.eval(), config, variables)

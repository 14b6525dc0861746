"""Properties of the whole U-Net that need no recorded outputs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_case import quick_jit

from gct_jax.config import UNetConfig, module_fields
from gct_jax.errors import ConfigError, InputError
from gct_jax.models.unet import UNet

TINY = UNetConfig(
    dim=8,
    dim_mults=(1, 2),
    num_resnet_blocks=(1, 1),
    layer_attns=("none", "none"),
    layer_attns_depth=(1, 1),
    layer_cross_attns=(False, True),
    attn_heads=2,
    attn_dim_head=4,
    mid_cross_attn_heads=2,
    mid_cross_attn_dim_head=4,
    text_embed_dim=12,
    max_text_len=6,
    attn_pool_num_latents=4,
    resnet_groups=(4, 4),
    init_cross_embed_kernel_sizes=(3, 7),
)


def make_inputs(config, side=8, batch=2):
    image = jax.random.normal(jax.random.key(0), (batch, side, side, config.channels))
    inputs = {"x": image, "log_snr": jnp.linspace(-2, 2, batch)}
    if config.lowres_cond:
        inputs |= {"low_res": image[::-1], "low_res_log_snr": jnp.full(batch, 3.0)}
    if config.text_embed_dim is not None:
        text = jax.random.normal(jax.random.key(1), (batch, 5, config.text_embed_dim))
        inputs |= {"text": text, "text_mask": jnp.ones((batch, 5), bool)}
    if config.self_cond:
        inputs["self_cond"] = 0.5 * image
    if config.cond_images_channels:
        inputs["cond_images"] = jnp.tile(image, config.cond_images_channels)
    return inputs


def output_shape(config, **inputs):
    model = UNet(**module_fields(config))

    def run():
        return model.init_with_output(jax.random.key(0), **inputs)[0]

    return jax.eval_shape(run).shape


def random_variables(model, inputs):
    """Weights that let every part matter, also the last layer, which is zero at initialisation."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), **inputs))
    leaves, tree = jax.tree.flatten(shapes)
    draw = np.random.default_rng(0)
    return tree.unflatten([draw.normal(size=x.shape, scale=0.3).astype("f") for x in leaves])


OPTIONS = [
    {},
    {"layer_attns": ("linear", "full"), "layer_attns_depth": (2, 1), "attend_at_middle": True},
    {"use_linear_cross_attn": True, "cosine_sim_attn": True, "memory_efficient": False},
    {"self_cond": True, "cond_images_channels": 3, "channels_out": 2, "channels": 1},
    {"combine_upsample_fmaps": True, "init_conv_to_final_conv_residual": True, "init_dim": 12},
    {"init_cross_embed_kernel_sizes": None, "pixel_shuffle_upsample": False},
    {"cross_embed_downsample_kernel_sizes": (2, 4), "final_resnet_block": False},
    {"text_embed_dim": None, "lowres_cond": False, "channels": 3},
    {"attn_pool_text": False, "use_global_context_attn": False, "num_resnet_blocks": (0, 2)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ", ".join(options) or "none")
def test_every_option_keeps_the_image_size(options):
    config = dataclasses.replace(TINY, **options)
    shape = output_shape(config, **make_inputs(config))
    assert shape == (2, 8, 8, config.channels_out or config.channels)


@pytest.mark.long
def test_every_parameter_gets_a_gradient():
    """All options at once; one text of the batch is dropped, so that the null text counts."""
    config = dataclasses.replace(
        TINY,
        layer_attns=("linear", "full"),
        attend_at_middle=True,
        self_cond=True,
        cond_images_channels=1,
        combine_upsample_fmaps=True,
        init_conv_to_final_conv_residual=True,
        cross_embed_downsample_kernel_sizes=(2, 4),
    )
    model = UNet(**module_fields(config))
    inputs = make_inputs(config) | {"keep_text": jnp.array([True, False])}
    variables = random_variables(model, inputs)

    @quick_jit
    def gradient(variables):
        return jax.grad(lambda v: jnp.mean(jnp.square(model.apply(v, **inputs) - 1)))(variables)

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(variables)["params"]):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert np.isfinite(leaf).all(), name
        assert np.abs(leaf).max() > 0, name


@pytest.mark.long
def test_bfloat16_computes_the_same_function():
    inputs = make_inputs(TINY)
    full, half = (UNet(**module_fields(TINY), dtype=d) for d in (jnp.float32, jnp.bfloat16))
    variables = random_variables(full, inputs)
    shapes = jax.eval_shape(lambda: half.init(jax.random.key(0), **inputs))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}

    @quick_jit
    def run(variables):
        return full.apply(variables, **inputs), half.apply(variables, **inputs)

    exact, rounded = run(variables)
    assert rounded.dtype == jnp.float32
    assert 0 < np.abs(exact - rounded).max() < 0.1 * exact.std()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            dict.fromkeys(("x", "low_res"), jnp.zeros((2, 6, 8, 1))),
            "image sides .6, 8. must be divisible by 4",
        ),
        ({"low_res": None}, "is conditioned on low_res"),
        ({"self_cond": jnp.zeros((2, 8, 8, 1))}, "is not conditioned on self_cond"),
        ({"text": jnp.zeros((2, 5, 7))}, "text is 7 wide, not 12"),
    ],
)
def test_inputs_that_do_not_fit_are_named(change, message):
    with pytest.raises(InputError, match=message):
        output_shape(TINY, **(make_inputs(TINY) | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"layer_cross_attns": (True,) * 4},
            "layer_cross_attns has 4 entries, but dim_mults has 2",
        ),
        ({"layer_attns": ("none", "half")}, "'half', which is not one of 'none', 'full', 'linear'"),
        ({"dim": 6}, "width 6 is not divisible into 4 groups"),
        ({"dim": 0}, "UNetConfig.dim = 0 must be a number of at least 1"),
    ],
)
def test_configurations_that_do_not_fit_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(TINY, **change)

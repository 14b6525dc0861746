"""Imported U-Nets give the outputs that the PyTorch reference recorded."""

import jax
import numpy as np
import pytest
from flax import traverse_util
from golden_case import GoldenCase

from gct_jax.config import module_fields
from gct_jax.errors import ModelFolderError
from gct_jax.interop.generatect.unet import unet_from_reference
from gct_jax.models.unet import UNet


@pytest.fixture(scope="module", params=["unet", "unet_yaml"])
def imported(request):
    case = GoldenCase(request.param)
    config, variables = unet_from_reference(case.weights())
    return case, config, variables


def test_options_are_inferred(imported):
    case, config, _ = imported
    given = case.meta["constructor"]
    cross = given["layer_cross_attns"]
    assert config.dim == given["dim"]
    assert config.dim_mults == tuple(given["dim_mults"])
    assert config.num_resnet_blocks == (given["num_resnet_blocks"],) * 3
    assert config.layer_cross_attns == ((True,) * 3 if cross is True else tuple(cross))
    assert config.layer_attns == ("none",) * 3
    assert (config.attn_heads, config.attn_dim_head) == (given["attn_heads"], 8)
    assert (config.mid_cross_attn_heads, config.mid_cross_attn_dim_head) == (8, 64)
    assert config.memory_efficient and config.lowres_cond and config.pixel_shuffle_upsample
    assert (config.text_embed_dim, config.max_text_len) == (24, 256)
    assert config.init_cross_embed_kernel_sizes == (3, 7, 15)
    assert not config.init_conv_to_final_conv_residual


def test_outputs_match_golden(imported):
    case, config, variables = imported
    model = UNet(**module_fields(config))
    x, log_snr = case.inputs("x", "time")
    low_res, low_res_log_snr = case.inputs("lowres_cond_img", "lowres_noise_times")
    text, mask = case.inputs("text_embeds", "text_mask")

    @jax.jit
    def run(variables, text, text_mask, keep_text):
        wanted = ("conditioning", "middle_block2")
        return model.apply(
            variables,
            x,
            log_snr,
            low_res=low_res,
            low_res_log_snr=low_res_log_snr,
            text=text,
            text_mask=text_mask,
            keep_text=keep_text,
            capture_intermediates=lambda module, _: module.name in wanted,
        )

    output, captured = run(variables, text, mask, None)
    case.check("out_text_mask", output)
    vector, tokens = captured["intermediates"]["conditioning"]["__call__"][0]
    case.check("time_hiddens_t", vector)
    case.check("cond_tokens", tokens)
    case.check("mid_features", captured["intermediates"]["middle_block2"]["__call__"][0])
    dropped, _ = run(variables, text, mask, np.zeros(len(x), bool))
    case.check("out_drop", dropped)
    case.check("out_cond_scale_3", dropped + 3 * (output - dropped))
    case.check("out_text_nomask", run(variables, text, None, None)[0])
    case.check("out_no_text", run(variables, None, None, None)[0])

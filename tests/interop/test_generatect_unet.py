"""Imported U-Nets give the outputs that the PyTorch reference recorded."""

import numpy as np
import pytest
from golden_case import GoldenCase, load_unet, quick_jit

from gct_jax.config import module_fields
from gct_jax.errors import ModelFolderError
from gct_jax.interop.generatect.unet import unet_from_reference
from gct_jax.kernels import convolution
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


@pytest.mark.long
def test_outputs_match_golden(imported):
    case, config, variables = imported
    model = UNet(**module_fields(config))
    x, log_snr = case.inputs("x", "time")
    low_res, low_res_log_snr = case.inputs("lowres_cond_img", "lowres_noise_times")
    text, mask = case.inputs("text_embeds", "text_mask")
    batch = len(x)

    def twice(array):
        return np.concatenate([array, array])

    @quick_jit
    def run_both_branches(variables):
        return model.apply(
            variables,
            twice(x),
            twice(log_snr),
            low_res=twice(low_res),
            low_res_log_snr=twice(low_res_log_snr),
            text=twice(text),
            text_mask=twice(mask),
            keep_text=np.arange(2 * batch) < batch,
            capture_intermediates=lambda module, _: (
                module.name in ("conditioning", "middle_block2")
            ),
        )

    outputs, captured = run_both_branches(variables)
    output, dropped = outputs[:batch], outputs[batch:]
    case.check("out_text_mask", output)
    case.check("out_drop", dropped)
    case.check("out_cond_scale_3", dropped + 3 * (output - dropped))
    captured = captured["intermediates"]
    vector, tokens = captured["conditioning"]["__call__"][0]
    case.check("time_hiddens_t", vector[:batch])
    case.check("cond_tokens", tokens[:batch])
    case.check("mid_features", captured["middle_block2"]["__call__"][0][:batch])

    @quick_jit
    def run(variables, text):
        options = {"low_res": low_res, "low_res_log_snr": low_res_log_snr, "text": text}
        return model.apply(variables, x, log_snr, **options)

    case.check("out_text_nomask", run(variables, text))
    case.check("out_no_text", run(variables, None))


@pytest.mark.long
def test_convolutions_of_wide_layers_match_golden(monkeypatch):
    """What a CPU does with many channels and large images, done with few and small ones."""
    monkeypatch.setattr(convolution, "NARROW_CHANNELS", 0)
    for limit in ("FEWEST_CHANNELS", "WINOGRAD_CHANNELS", "FEWEST_TILES"):
        monkeypatch.setattr(convolution, limit, 1)
    case = GoldenCase("unet_yaml")
    x, log_snr, text = case.inputs("x", "time", "text_embeds")
    low_res, low_res_log_snr = case.inputs("lowres_cond_img", "lowres_noise_times")

    @quick_jit
    def run(unet):
        return unet(x, log_snr, low_res=low_res, low_res_log_snr=low_res_log_snr, text=text)

    case.check("out_text_nomask", run(load_unet(case)))


def test_broken_weights_are_named():
    state = GoldenCase("unet_yaml").weights()
    with pytest.raises(ModelFolderError, match=r"1 unexpected tensor.*'ups\.0\.7\.weight'"):
        unet_from_reference({**state, "ups.0.7.weight": np.zeros(3)})
    with pytest.raises(ModelFolderError, match=r"lack the tensor 'norm_cond\.weight'"):
        unet_from_reference({k: v for k, v in state.items() if k != "norm_cond.weight"})
    with pytest.raises(ModelFolderError, match=r"lack .*'final_conv\.bias' of shape \(1,\)"):
        unet_from_reference({k: v for k, v in state.items() if k != "final_conv.bias"})
    with pytest.raises(ModelFolderError, match=r"'norm_cond\.bias' has shape \(5,\).*\(8,\)"):
        unet_from_reference({**state, "norm_cond.bias": np.zeros(5, np.float32)})

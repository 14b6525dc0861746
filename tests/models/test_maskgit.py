"""MaskGit against recorded reference outputs and gradients, and its edge cases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_case import GoldenCase

from gct_jax.config import MaskGitConfig, module_fields
from gct_jax.corruption import masking
from gct_jax.errors import InputError
from gct_jax.interop.generatect.maskgit import maskgit_from_reference
from gct_jax.kernels.bias import bias_matrix
from gct_jax.models.maskgit import MaskGit, scale_gradient
from gct_jax.sampling.guidance import with_guidance


@pytest.fixture(scope="module")
def case():
    return GoldenCase("maskgit")


@pytest.fixture(scope="module")
def converted(case):
    return maskgit_from_reference(case.weights())


@pytest.fixture(scope="module")
def model(converted):
    return MaskGit(**module_fields(converted[0]), scale_gradient=0.1, mask_peg=False)


@pytest.fixture(scope="module")
def apply(model, converted):
    return jax.jit(lambda *arguments: model.apply(converted[1], *arguments))


def batch(case):
    names = ("ids", "context", "text_mask", "video_mask")
    ids, context, text_mask, video_mask = (case.arrays[f"in__{name}"] for name in names)
    return ids, context, text_mask, video_mask.reshape(ids.shape)


def assert_golden(case, name, actual):
    expected = case.arrays[f"out__{name}"]
    actual = np.asarray(actual).reshape(expected.shape)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=case.tolerance(name))


def test_logits_match_golden(case, apply):
    ids, context, text_mask, video_mask = batch(case)
    everything = np.ones(ids.shape, bool)
    assert_golden(case, "logits_text", apply(ids, context, text_mask, everything))
    assert_golden(case, "logits_null", apply(ids, context, text_mask & False, everything))
    assert_golden(case, "logits_video_mask", apply(ids, context, text_mask, video_mask))
    assert_golden(case, "logits_no_context", apply(ids))


def test_guided_logits_match_golden(case, model, converted):
    ids, context, text_mask, _ = batch(case)
    variables = converted[1]

    def logits(scale):
        def branch(*arguments):
            return model.apply(variables, *arguments)

        return jax.jit(with_guidance(branch, context, text_mask, scale))(ids)

    assert_golden(case, "logits_cond_scale_5", logits(5.0))
    assert_golden(case, "logits_cond_scale_1", logits(1.0))


def test_embeddings_and_position_bias_match_golden(case, model, converted):
    ids, context, text_mask, _ = batch(case)
    embed = jax.jit(functools.partial(model.apply, method=MaskGit.embed))
    embeds = embed(converted[1], ids, context, text_mask)
    assert_golden(case, "embeds_text", embeds)
    bias = model.apply(converted[1], method=lambda module: module.position_bias(ids.shape[1:]))
    assert_golden(case, "rel_pos_bias", bias_matrix(bias))


def test_training_gradients_match_golden(model, converted):
    case = GoldenCase("maskgit_train")
    ids, context = case.arrays["in__ids"], case.arrays["in__context"]
    masked = case.arrays["out__mask_token_mask"].reshape(ids.shape)

    def loss_fn(params):
        seen = jnp.where(masked, model.num_tokens, ids)
        logits = model.apply({"params": params}, seen, context, jnp.any(context != 0, axis=-1))
        return masking.masked_cross_entropy(logits, ids, masked), logits

    (loss, logits), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(
        converted[1]["params"]
    )
    assert_golden(case, "loss", loss)
    assert_golden(case, "logits", logits)
    token, position = grads["embedding"]["token"]["embedding"], grads["embedding"]["position"]
    layer = grads["transformer"]["layers_0"]
    cross = layer["cross_attention"]
    null_kv = np.stack([cross["null_key"], cross["null_value"]], axis=1)  # [n, kv, heads, d]
    expected = {
        "grad__token_emb.weight": token,
        "grad__pos_emb.weight": position,
        "grad_alpha1__token_emb.weight": token / model.scale_gradient,
        "grad_alpha1__pos_emb.weight": position / model.scale_gradient,
        "grad__to_logits.weight": grads["to_logits"]["kernel"].T,
        "grad__transformer.layers.0.1.k_scale": layer["self_attention"]["key_scale"],
        "grad__transformer.layers.0.2.null_kv": null_kv.transpose(2, 0, 1, 3).reshape(4, 4, 8),
        "grad__continuous_pos_bias.net.0.0.weight": grads["position_bias"]["hidden_0"]["kernel"].T,
    }
    for name, gradient in expected.items():
        # Gradients are around 1e-2, so the tolerance is relative to each one's largest entry.
        scale = np.abs(case.arrays[f"out__{name}"]).max()
        np.testing.assert_allclose(
            gradient, case.arrays[f"out__{name}"], rtol=0, atol=1e-4 * scale, err_msg=name
        )


def test_shrink_scales_the_gradient_and_keeps_the_value():
    x = jax.random.normal(jax.random.key(0), (50,))
    value, pullback = jax.vjp(lambda x: scale_gradient(x, 0.1), x)
    np.testing.assert_array_equal(value, x)
    np.testing.assert_array_equal(pullback(jnp.ones(50))[0], np.full(50, 0.1, np.float32))


def test_no_mask_means_all_text_valid_and_masked_text_has_no_say(case, apply):
    ids, context, text_mask, _ = batch(case)
    everything = np.ones(ids.shape, bool)
    unmasked = apply(ids, context, text_mask | True, everything)
    np.testing.assert_allclose(apply(ids, context), unmasked, atol=1e-6)
    masked = apply(ids, context, text_mask, everything)
    assert jnp.abs(unmasked[1] - masked[1]).max() > 1e-3
    other = np.where(text_mask[..., None], context, context[::-1] + 1)
    np.testing.assert_array_equal(apply(ids, other, text_mask, everything), masked)


def test_bfloat16_compute_keeps_logits_gradients_and_parameters_in_float32(case, converted, apply):
    ids, context, text_mask, _ = batch(case)
    config, variables = converted
    model = MaskGit(**module_fields(config), dtype=jnp.bfloat16)
    logits = jax.jit(model.apply)(variables, ids, context, text_mask)
    exact = apply(ids, context, text_mask, np.ones(ids.shape, bool))
    assert logits.dtype == jnp.float32
    assert 0 < jnp.abs(logits - exact).mean() < 0.02 * jnp.std(exact)
    shapes = jax.eval_shape(model.init, jax.random.key(0), ids, context)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    head = model.clone(depth=0)  # embeddings and logits alone: quick to differentiate
    grads = jax.jit(jax.grad(lambda v: jnp.mean(head.apply(v, ids) ** 2)))(variables)["params"]
    for leaf in (grads["to_logits"]["kernel"], grads["embedding"]["position"]):
        assert leaf.dtype == jnp.float32 and jnp.all(jnp.isfinite(leaf)) and jnp.any(leaf != 0)


def test_published_size():
    config = MaskGitConfig()
    shapes = jax.eval_shape(
        MaskGit(**module_fields(config)).init,
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, 2, 8, 8), jnp.int32),
        jax.ShapeDtypeStruct((1, 4, config.context_dim), jnp.float32),
    )
    # The published file holds an unused norm of 512 gains in each of its 6 self attentions.
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 40_378_184 - 6 * 512


def test_too_many_tokens_are_refused():
    model = MaskGit(
        num_tokens=8, max_sequence_length=31, dim=8, depth=1, heads=2, dim_head=4, context_dim=None
    )
    with pytest.raises(InputError, match=r"2x4x4 grid has 32 tokens.*max_sequence_length = 31"):
        model.init(jax.random.key(0), jnp.zeros((1, 2, 4, 4), jnp.int32))

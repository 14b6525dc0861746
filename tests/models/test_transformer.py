"""The transformer's semantics that golden outputs of whole models cannot single out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit

from gct_jax.models.norms import l2_normalize
from gct_jax.models.transformer import Attention, Transformer

SHAPE = (2, 3, 2, 2, 8)


def randomized(variables, seed=0):
    """Every parameter random, so that no gain of 1 or bias of 0 hides an omission."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), variables)


def build(module, *args):
    x = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    variables = randomized(jax.eval_shape(module.init, jax.random.key(0), x, *args))
    return quick_jit(module.apply), variables, x


def silence_convolution(variables):
    peg = variables["params"]["layers_0"]["peg"]
    peg["kernel"] = np.zeros_like(peg["kernel"])


def differ(a, b):
    return np.abs(np.asarray(a) - np.asarray(b)).max() > 1e-2


def test_cross_attention_by_hand():
    module = Attention(dim=4, heads=1, dim_head=2, null_keys=2)
    rng = np.random.default_rng(2)
    x, context = rng.normal(size=(1, 3, 4)), rng.normal(size=(1, 5, 6))
    variables = randomized(jax.eval_shape(module.init, jax.random.key(0), x, context))
    p = jax.tree.map(np.asarray, variables["params"])

    def gain_norm(y, scale):
        y = y - y.mean(-1, keepdims=True)
        return scale * y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5)

    def direction(y):
        return y / np.linalg.norm(y, axis=-1, keepdims=True)

    source = gain_norm(context, p["context_norm"]["scale"])[0]
    q = gain_norm(x, p["norm"]["scale"])[0] @ p["query"]["kernel"]
    k = np.concatenate([p["null_key"][:, 0], source @ p["key"]["kernel"]])
    v = np.concatenate([p["null_value"][:, 0], source @ p["value"]["kernel"]])
    logits = 8 * (direction(q) * p["query_scale"]) @ (direction(k) * p["key_scale"]).T
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    expected = weights / weights.sum(-1, keepdims=True) @ v @ p["out"]["kernel"]
    actual = quick_jit(module.apply)(variables, x, context)
    np.testing.assert_allclose(actual[0], expected, atol=2e-5)


def test_self_attention_takes_keys_and_values_from_the_raw_input():
    module = Attention(dim=4, heads=2, dim_head=2)
    x = np.random.default_rng(0).normal(size=(1, 3, 4)).astype(np.float32)
    variables = randomized(jax.eval_shape(module.init, jax.random.key(0), x))
    # Queries are normalised and keys compared by direction, so a scaled input scales the values.
    apply = quick_jit(module.apply)
    actual, single = (np.asarray(apply(variables, f * x)) for f in (np.float32(100), np.float32(1)))
    np.testing.assert_allclose(actual, 100 * single, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("attend", ["space", "time"])
def test_attention_stays_in_its_fold(attend):
    """With the convolution silenced, a changed token reaches its own fold and nothing else."""
    apply, variables, x = build(Transformer(8, 1, 2, 4, attend=attend))
    silence_convolution(variables)
    moved = x.copy()
    moved[0, 1, 1, 0] += 1
    changed = np.argwhere(
        (np.asarray(apply(variables, x)) != np.asarray(apply(variables, moved))).any(-1)
    )
    fold = {(1, r, c) for r in (0, 1) for c in (0, 1)}
    if attend == "time":
        fold = {(t, 1, 0) for t in range(3)}
    assert {tuple(index[1:].tolist()) for index in changed} == fold
    assert set(changed[:, 0].tolist()) == {0}


def test_causal_time_attention_hides_the_future():
    apply, variables, x = build(Transformer(8, 2, 2, 4, attend="time", causal=True))
    later = x.copy()
    later[:, 2] += 1
    before, after = np.asarray(apply(variables, x)), np.asarray(apply(variables, later))
    np.testing.assert_array_equal(before[:, :2], after[:, :2])
    assert differ(before[:, 2], after[:, 2])


def test_masks_hide_context_and_tokens():
    context = np.random.default_rng(2).normal(size=(2, 5, 6)).astype(np.float32)
    module = Transformer(8, 1, 2, 4, context_dim=6, attend="all", causal_peg=False)
    apply, variables, x = build(module, None, context)
    all_text, all_tokens = np.ones((2, 5), bool), np.ones(SHAPE[:4], bool)
    text_mask = np.arange(5) < np.array([[3], [3]])
    masked = apply(variables, x, None, context, text_mask, all_tokens)
    cut = apply(variables, x, None, context[:, :3], all_text[:, :3], all_tokens)
    np.testing.assert_allclose(masked, cut, atol=1e-5)
    assert differ(masked, apply(variables, x, None, context, all_text, all_tokens))
    # No context at all is another function than a context of which only the null keys are seen.
    null = apply(variables, x, None, context, ~all_text, all_tokens)
    assert differ(null, apply(variables, x))

    silence_convolution(variables)
    token_mask = all_tokens.copy()
    token_mask[:, 2] = False
    moved = x.copy()
    moved[:, 2] += 1
    kept = np.asarray(apply(variables, x, None, context, all_text, token_mask))
    changed = np.asarray(apply(variables, moved, None, context, all_text, token_mask))
    np.testing.assert_allclose(kept[:, :2], changed[:, :2], atol=1e-6)


def test_bfloat16_keeps_float32_parameters_and_stays_close():
    apply, variables, x = build(Transformer(8, 1, 2, 4, attend="all"))
    half = Transformer(8, 1, 2, 4, attend="all", dtype=jnp.bfloat16)
    shapes = jax.eval_shape(half.init, jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    small = jax.tree.map(lambda leaf: np.float32(0.3) * leaf, variables)
    out = quick_jit(half.apply)(small, x)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), apply(small, x), atol=0.03)


def test_normalising_zero_has_a_finite_gradient():
    gradient = jax.grad(lambda x: jnp.sum(l2_normalize(x)))(jnp.zeros(3))
    assert bool(jnp.all(jnp.isfinite(gradient)))


def test_impossible_options():
    x = jnp.zeros(SHAPE)
    for options, message in (
        ({"attend": "rows"}, "attend 'rows'"),
        ({"attend": "space", "causal": True}, "along time"),
    ):
        with pytest.raises(ValueError, match=message):
            Transformer(8, 1, 2, 4, **options).init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="width 7 for a context_dim of 6"):
        module = Transformer(8, 1, 2, 4, context_dim=6)
        module.init(jax.random.key(0), x, None, jnp.zeros((2, 5, 7)))

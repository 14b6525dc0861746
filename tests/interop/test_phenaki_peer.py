"""Attention, MaskGIT, critic and codebook at random sizes, against the packages they come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_case import quick_jit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peer_packages import assert_restored, fill_randomly, require, state_of

from gct_jax.config import module_fields
from gct_jax.interop.generatect import maskgit as interop
from gct_jax.interop.generatect.ctvit import codebook_layout
from gct_jax.interop.generatect.layout import Layout
from gct_jax.interop.generatect.transformer import attention
from gct_jax.models.critics import TokenCritic
from gct_jax.models.maskgit import MaskGit
from gct_jax.models.quantizer import CosineQuantizer, ema_update
from gct_jax.models.transformer import Attention
from launch.benchmark.peer_imports import peer_module

torch = pytest.importorskip("torch")
pytestmark = require("phenaki_pytorch", "vector_quantize_pytorch", "beartype")
TOLERANCE = 5e-5
sweep = settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
heads = st.integers(1, 3)
dim_head = st.sampled_from([4, 6, 8])
dim = st.sampled_from([8, 12, 20])


@pytest.fixture(scope="module")
def phenaki():
    with peer_module("phenaki_pytorch") as module:
        yield module


def random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(actual, expected):
    scale = max(1.0, float(expected.abs().max()))
    np.testing.assert_allclose(actual, expected.numpy(), rtol=0, atol=TOLERANCE * scale)


@sweep
@given(heads, dim_head, dim, st.one_of(st.none(), dim), st.integers(1, 3), st.integers(0, 99))
def test_attention(phenaki, heads, dim_head, dim, context_dim, nulls, seed):
    nulls = 0 if context_dim is None else nulls
    theirs = phenaki.Attention(
        dim=dim, dim_head=dim_head, heads=heads, dim_context=context_dim, num_null_kv=nulls
    ).eval()
    fill_randomly(theirs, seed)
    ours = Attention(dim, heads, dim_head, null_keys=nulls)
    x = random(seed, 2, 5, dim)
    context = None if context_dim is None else random(seed + 1, 2, 3, context_dim)
    mask = np.arange(5 if context is None else 3) < np.array([[2], [3]])
    init = jax.eval_shape(ours.init, jax.random.key(0), x, context)
    size = {"dim": dim, "heads": heads, "dim_head": dim_head, "context_dim": context_dim}
    layout = Layout.of(init, attention("params", "", **size))
    variables = layout.from_reference({f".{name}": x for name, x in state_of(theirs).items()})
    with torch.no_grad():
        expected = theirs(
            torch.from_numpy(x),
            mask=torch.from_numpy(mask),
            context=None if context is None else torch.from_numpy(context),
        )
    close(ours.apply(variables, x, context, key_mask=mask), expected)


@sweep
@given(heads, dim_head, dim, st.integers(1, 2), st.booleans(), st.integers(0, 99))
def test_maskgit_and_critic(phenaki, heads, dim_head, dim, depth, conditional, seed):
    size = {"dim": dim, "num_tokens": 11, "max_seq_len": 20, "depth": depth, "heads": heads}
    size |= {"dim_head": dim_head, "dim_context": 10}
    ids = np.random.default_rng(seed).integers(0, 12, (2, 2, 2, 3)).astype(np.int32)
    context = random(seed, 2, 4, 10) if conditional else None
    mask = np.arange(4) < np.array([[1], [4]]) if conditional else None
    inputs = {}
    if conditional:
        inputs = {"context": torch.from_numpy(context), "text_mask": torch.from_numpy(mask)}

    theirs = phenaki.MaskGit(unconditional=not conditional, **size).eval()
    fill_randomly(theirs, seed)
    config, variables = interop.maskgit_from_reference(state_of(theirs))
    assert config.context_dim == (10 if conditional else None)
    kept = {
        name: value
        for name, value in state_of(theirs).items()
        if name not in interop.maskgit_layout(config).names()
    }
    assert_restored(theirs, interop.maskgit_to_reference(config, variables, kept))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids).long(), **inputs)
    module = MaskGit(**module_fields(config))
    logits = quick_jit(module.apply)(variables, ids, context, mask)
    close(logits.reshape(2, 12, 11), expected)

    critic = phenaki.TokenCritic(has_cross_attn=conditional, **size).eval()
    fill_randomly(critic, seed + 1)
    config, variables = interop.token_critic_from_reference(state_of(critic))
    inputs = {"context": inputs["context"], "text_mask": inputs["text_mask"]} if inputs else {}
    with torch.no_grad():
        expected = critic(
            torch.from_numpy(ids.reshape(2, 12)).long(),
            video_patch_shape=(2, 2, 3),
            cond_drop_prob=0.0,
            **inputs,
        )
    scores = quick_jit(TokenCritic(**module_fields(config)).apply)(variables, ids, context, mask)
    close(scores.reshape(2, 12), expected)


@sweep
@given(st.integers(2, 30), dim, st.integers(1, 40), st.integers(0, 99))
def test_codebook(codes, dim, tokens, seed):
    from vector_quantize_pytorch import VectorQuantize

    theirs = VectorQuantize(dim=dim, codebook_size=codes, use_cosine_sim=True)
    layout = codebook_layout(codes, dim)
    variables = layout.from_reference(state_of(theirs))
    assert_restored(theirs, layout.to_reference(variables))
    latents = random(seed, 1, tokens, dim)
    module = CosineQuantizer(dim, codes)
    ids = module.apply(variables, latents, method=module.choose)
    with torch.no_grad():
        expected, expected_ids, _ = theirs.eval()(torch.from_numpy(latents))
        theirs.train()(torch.from_numpy(latents))
    np.testing.assert_array_equal(ids, expected_ids.numpy())
    close(module.apply(variables, ids, method=module.lookup), expected)
    updated = ema_update(
        variables["codebook"], jnp.asarray(latents), ids, decay=0.8, weighting="code"
    )
    state = state_of(theirs)
    np.testing.assert_allclose(
        updated["embedding"], state["_codebook.embed"][0], rtol=0, atol=TOLERANCE
    )
    np.testing.assert_allclose(
        updated["cluster_size"], state["_codebook.cluster_size"][0], rtol=0, atol=TOLERANCE
    )

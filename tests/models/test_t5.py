"""The T5 encoder against recorded Hugging Face outputs, and its masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from flax.traverse_util import flatten_dict
from golden_case import FOLDER, GoldenCase

from gct_jax.config import T5Config, module_fields
from gct_jax.interop.huggingface import t5_from_huggingface
from gct_jax.models.t5 import RelativePositionBias, T5Encoder, relative_position_bucket


@pytest.fixture(scope="module")
def case():
    return GoldenCase("t5")


@pytest.fixture(scope="module")
def encoder(case):
    config, variables = t5_from_huggingface(FOLDER / "t5")
    module = T5Encoder(**module_fields(config))
    return quick_jit(lambda ids: module.apply(variables, ids)), variables


def test_embedding_equals_reference(case, encoder):
    apply, _ = encoder
    embedding = apply(case.arrays["in__input_ids"])
    case.check("masked_embedding", embedding)
    case.check("masked_embedding_super_resolution", embedding)
    valid = case.arrays["in__attention_mask"] == 1
    expected = case.arrays["out__last_hidden_state"]
    tolerance = case.tolerance("last_hidden_state")
    np.testing.assert_allclose(embedding[valid], expected[valid], rtol=0, atol=tolerance)


def test_position_bias_equals_reference(case, encoder):
    _, variables = encoder
    table = variables["params"]["encoder"]["relpos_bias"]
    bias = RelativePositionBias(heads=4).apply({"params": table}, 20)
    expected = case.arrays["out__position_bias"][0]  # four axes, but none of them channels
    tolerance = case.tolerance("position_bias")
    np.testing.assert_allclose(bias, expected, rtol=0, atol=tolerance)


def test_buckets_equal_reference(case):
    position = jnp.arange(20)
    row, column = relative_position_bucket(position), relative_position_bucket(-position)
    np.testing.assert_array_equal(row, case.arrays["out__relative_position_bucket_row0"])
    np.testing.assert_array_equal(column, case.arrays["out__relative_position_bucket_col0"])


def test_buckets_at_their_edges():
    """First distance of each logarithmic bucket, recorded from T5X."""
    first = jnp.array([8, 12, 16, 23, 32, 46, 64, 91])
    np.testing.assert_array_equal(relative_position_bucket(-first), range(8, 16))
    np.testing.assert_array_equal(relative_position_bucket(first), range(24, 32))
    np.testing.assert_array_equal(relative_position_bucket(1 - first), range(7, 15))
    offsets = [-200, -128, -127, -64, -32, -16, -8, -7, -1, 0, 1, 7, 8, 16, 32, 64, 127, 128]
    expected = [15, 15, 15, 14, 12, 10, 8, 7, 1, 0, 17, 23, 24, 26, 28, 30, 31, 31]
    np.testing.assert_array_equal(relative_position_bucket(jnp.array(offsets)), expected)


def test_padding_neither_matters_nor_shows(case, encoder):
    apply, _ = encoder
    ids = np.zeros_like(case.arrays["in__input_ids"])  # the shape that is compiled already
    ids[0, :6] = [5, 9, 77, 8, 3, 1]
    embedding = apply(ids)
    np.testing.assert_allclose(embedding[:1, :6], apply(ids[:1, :6]), rtol=0, atol=5e-6)
    assert not embedding[0, 6:].any()
    assert not embedding[1:].any()


def test_half_precision_stays_close(case, encoder):
    apply, variables = encoder
    config, _ = t5_from_huggingface(FOLDER / "t5")
    module = T5Encoder(**module_fields(config), dtype=jnp.bfloat16)
    ids = case.arrays["in__input_ids"]
    embedding = quick_jit(module.apply)(variables, ids)
    assert embedding.dtype == jnp.bfloat16
    error = jnp.abs(embedding.astype(jnp.float32) - apply(ids))
    assert error.mean() < 0.02 * jnp.abs(apply(ids)).mean()


def test_base_has_the_published_tree():
    module = T5Encoder(**module_fields(T5Config()))
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    leaves = flatten_dict(shapes["params"], sep="/")
    assert sum(leaf.size for leaf in leaves.values()) == 109_628_544
    assert len(leaves) == 111
    assert leaves["encoder/relpos_bias/rel_embedding"].shape == (12, 32)
    assert leaves["encoder/layers_11/mlp/wo/kernel"].shape == (2048, 768)
    assert leaves["token_embedder/embedding"].shape == (32128, 768)


def test_initial_logits_have_unit_scale():
    """Without 1/sqrt(d) the query's initialisation must keep attention from saturating."""
    module = T5Encoder(**module_fields(T5Config(64, 64, 1, 4, 64, 64)))
    variables = quick_jit(module.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    kernels = variables["params"]["encoder"]["layers_0"]["attention"]
    x = jax.random.normal(jax.random.key(1), (256, 64))
    query, key = (x @ kernels[name]["kernel"][:, :64] for name in ("query", "key"))
    assert 0.5 < float(jnp.std(query @ key.T)) < 2.0

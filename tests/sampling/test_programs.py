"""The sampler's programs: prepared text against direct, and samples that do not see each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from tiny_model import random_variables, tiny_config

from gct_jax.components import build_component
from gct_jax.models.maskgit import MaskGit
from gct_jax.sampling.guidance import with_guidance
from gct_jax.sampling.programs import map_rows


@pytest.fixture(scope="module")
def maskgit():
    config = tiny_config()
    return build_component(config, "maskgit"), random_variables(config, "maskgit")


def test_prepared_text_gives_the_logits_of_the_text_itself(maskgit):
    module, variables = maskgit
    rng = np.random.default_rng(0)
    context = rng.normal(size=(2, 6, module.context_dim)).astype(np.float32)
    mask = np.arange(6) < np.array([[6], [2]])
    ids = rng.integers(0, module.num_tokens + 1, (2, 3, 2, 2))
    keys = module.apply(variables, context, method=MaskGit.context_keys)
    assert len(keys) == module.depth
    assert keys[0].keys.shape == (2, 2 + 6, module.heads, module.dim_head)

    @quick_jit
    def logits(context):
        def apply(*inputs):
            return module.apply(variables, *inputs)

        return apply(ids, context, mask), with_guidance(apply, context, mask, 3.0)(ids)

    for prepared, direct in zip(logits(keys), logits(context), strict=True):
        np.testing.assert_allclose(prepared, direct, atol=1e-5)
    assert np.abs(logits(keys)[0] - logits(keys)[1]).max() > 1e-2


def test_width_of_the_text_is_checked_when_it_is_prepared(maskgit):
    module, variables = maskgit
    context = np.zeros((1, 4, module.context_dim + 1), np.float32)
    with pytest.raises(ValueError, match=f"context_dim of {module.context_dim}"):
        module.apply(variables, context, method=MaskGit.context_keys)


def test_rows_are_mapped_up_to_a_traced_count():
    calls = []

    def fn(row):
        calls.append(row)
        return {"sum": row["a"].sum() + row["b"], "key": jax.random.bits(row["key"])}

    rows = {
        "a": jnp.arange(12).reshape(4, 3),
        "b": jnp.array([1, 10, 100, 1000]),
        "key": jax.random.split(jax.random.key(0), 4),
    }
    run = jax.jit(lambda rows, count: map_rows(fn, rows, count))
    for count in (4, 2):
        made = run(rows, count)
        np.testing.assert_array_equal(made["sum"][:count], [4, 22, 121, 1030][:count])
        np.testing.assert_array_equal(
            made["key"][:count], jax.vmap(jax.random.bits)(rows["key"])[:count]
        )
        assert not made["sum"][count:].any()
    assert all(row["a"].shape == (3,) for row in calls)

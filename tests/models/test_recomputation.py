"""A layer that is computed again has the same gradients and takes less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gct_jax.kernels.bias import RelativeBias
from gct_jax.models.transformer import Transformer

GRID = (3, 4, 4)


def transformer(recompute: bool, depth: int = 2, **options) -> Transformer:
    return Transformer(
        dim=16, depth=depth, heads=2, dim_head=8, context_dim=12, recompute=recompute, **options
    )


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "x": normal(2, *GRID, 16),
        "table": normal(2, *(2 * n - 1 for n in GRID)),
        "context": normal(2, 5, 12),
        "context_mask": jnp.arange(5)[None] < jnp.array([[5], [2]]),
        "token_mask": jnp.asarray(rng.random((2, *GRID)) < 0.8).at[:, 0].set(True),
    }


def loss(module: Transformer, variables, floats, masks):
    bias = RelativeBias(floats["table"], GRID)
    out = module.apply(variables, floats["x"], bias, floats["context"], **masks)
    return jnp.sum(jnp.sin(out))


@pytest.mark.parametrize("causal_peg", [False, True])
@pytest.mark.parametrize("backend", ["dense", "chunked"])
def test_gradients_of_everything_are_the_same(inputs, backend, causal_peg):
    kept = transformer(False, backend=backend, causal_peg=causal_peg)
    again = transformer(True, backend=backend, causal_peg=causal_peg)
    variables = kept.init(jax.random.key(0), inputs["x"], None, inputs["context"])
    assert jax.tree.structure(variables) == jax.tree.structure(
        again.init(jax.random.key(0), inputs["x"], None, inputs["context"])
    )
    masks = {name: value for name, value in inputs.items() if name.endswith("_mask")}
    floats = {name: value for name, value in inputs.items() if name not in masks}
    values, gradients = zip(
        *(
            jax.jit(jax.value_and_grad(loss, argnums=(1, 2)), static_argnums=0)(
                module, variables, floats, masks
            )
            for module in (kept, again)
        ),
        strict=True,
    )
    np.testing.assert_allclose(values[1], values[0], rtol=1e-6)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(other, one, atol=2e-5), *gradients)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(gradients[1]))


def test_without_bias_context_and_masks(inputs):
    kept, again = transformer(False), transformer(True)
    variables = kept.init(jax.random.key(0), inputs["x"])
    one, other = (
        jax.grad(lambda v, m=module: jnp.sum(jnp.sin(m.apply(v, inputs["x"]))))(variables)
        for module in (kept, again)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, atol=2e-5), one, other)


def test_memory_of_the_backward_pass_barely_grows_with_depth():
    x = jax.ShapeDtypeStruct((1, 8, 16, 16, 16), jnp.float32)  # 2,048 tokens

    def temporary_bytes(depth, recompute):
        module = transformer(recompute, depth, attend="space")
        variables = jax.eval_shape(module.init, jax.random.key(0), x)
        gradient = jax.jit(jax.grad(lambda v, x: jnp.sum(jnp.square(module.apply(v, x)))))
        return gradient.lower(variables, x).compile().memory_analysis().temp_size_in_bytes

    kept, again = (
        temporary_bytes(6, recompute) - temporary_bytes(2, recompute) for recompute in (False, True)
    )
    assert again < 0.3 * kept
    assert again < 4 * 3 * np.prod(x.shape) * 4  # four layers: their inputs, and little else

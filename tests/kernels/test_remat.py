"""A layer that is computed again has the same gradients and takes less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit

from gct_jax.kernels.bias import RelativeBias
from gct_jax.models.transformer import Transformer

GRID = (3, 4, 4)


def transformer(remat: bool, depth: int = 2, **options) -> Transformer:
    return Transformer(
        dim=16, depth=depth, heads=2, dim_head=8, context_dim=12, remat=remat, **options
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


def gradients_of_both(inputs, *given, masks=None, **options):
    """With kept and with rematted layers: the loss and its gradients by weights and inputs."""
    kept, again = (transformer(remat, **options) for remat in (False, True))
    variables, tree = (
        quick_jit(module.init)(jax.random.key(0), inputs["x"], None, *given)
        for module in (kept, again)
    )
    assert jax.tree.structure(variables) == jax.tree.structure(tree)
    floats = {name: inputs[name] for name in ("x", "table")} | {"context": given}
    return [
        quick_jit(jax.value_and_grad(loss, argnums=(1, 2)), static_argnums=0)(
            module, variables, floats, masks or {}
        )
        for module in (kept, again)
    ]


def loss(module, variables, floats, masks):
    bias = RelativeBias(floats["table"], GRID)
    out = module.apply(variables, floats["x"], bias, *floats["context"], **masks)
    return jnp.sum(jnp.sin(out))


def assert_same(actual, expected):
    """Up to the rounding of sums of many terms."""
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(actual, expected, atol=1e-5 * scale)


@pytest.mark.parametrize(("backend", "causal_peg"), [("dense", True), ("chunked", False)])
@pytest.mark.long
def test_gradients_of_everything_are_the_same(inputs, backend, causal_peg):
    masks = {name: value for name, value in inputs.items() if name.endswith("_mask")}
    options = {"backend": backend, "causal_peg": causal_peg}
    kept, again = gradients_of_both(inputs, inputs["context"], masks=masks, **options)
    jax.tree.map(assert_same, again, kept)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(again))


def test_without_context_and_masks(inputs):
    kept, again = gradients_of_both(inputs)
    jax.tree.map(assert_same, again, kept)


@pytest.mark.long
@pytest.mark.slow
def test_memory_of_the_backward_pass_barely_grows_with_depth():
    x = jax.ShapeDtypeStruct((1, 8, 16, 16, 16), jnp.float32)  # 2,048 tokens

    def temporary_bytes(depth, remat):
        module = transformer(remat, depth, attend="space")
        variables = jax.eval_shape(module.init, jax.random.key(0), x)
        gradient = quick_jit(jax.grad(lambda v, x: jnp.sum(jnp.square(module.apply(v, x)))))
        return gradient.lower(variables, x).compile().memory_analysis().temp_size_in_bytes

    kept, again = (temporary_bytes(3, remat) - temporary_bytes(1, remat) for remat in (False, True))
    assert again < 0.3 * kept

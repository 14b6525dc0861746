"""The flash kernels in Pallas' interpreter, and the cuDNN route by XLA, against dense attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit

from gct_jax.kernels.attention import attention, choose_backend, shared_bias
from gct_jax.kernels.bias import RelativeBias
from gct_jax.kernels.cudnn import attend_cudnn
from gct_jax.kernels.flash import attend_flash, fits_flash
from gct_jax.sharding import make_mesh

BATCH, HEADS, DIM = 2, 2, 8

dense = functools.partial(attention, backend="dense")
flash = functools.partial(attend_flash, block=128)  # small blocks, so that there are several

# grid or (queries, keys), null keys, masked, causal
CASES = {
    "frames_of_several_blocks": ((3, 2, 4), 2, True, False),
    "wide_frames": ((2, 9, 8), 0, False, False),
    "causal_with_bias": ((3, 2, 3), 1, False, True),
    "text": ((70, 40), 2, True, False),
    "causal_without_bias": ((140, 140), 0, False, True),
}


def arrays(name, dtype=np.float32):
    shape, null_keys, masked, causal = CASES[name]
    grid = shape if len(shape) == 3 else None
    queries, keys = shape if grid is None else [int(np.prod(grid))] * 2
    rng = np.random.default_rng(0)
    q, k, v = (
        jnp.asarray(rng.normal(size=(BATCH, n, HEADS, DIM)), dtype)
        for n in (queries, null_keys + keys, null_keys + keys)
    )
    table = None if grid is None else rng.normal(size=(HEADS, *(2 * n - 1 for n in grid)))
    mask = np.arange(keys) < np.array([[keys], [keys - 3]]) if masked else None
    options = {"scale": 0.7, "null_keys": null_keys, "key_mask": mask, "causal": causal}
    return q, k, v, None if table is None else jnp.asarray(table, jnp.float32), grid, options


def value_and_gradients(q, k, v, table, grid, options, backend):
    def loss(q, k, v, table):
        bias = None if table is None else RelativeBias(table, grid)
        out = backend(q, k, v, bias=bias, **options)
        return jnp.sum(jnp.sin(3 * out)), out

    wanted = (0, 1, 2) if table is None else (0, 1, 2, 3)
    run = quick_jit(jax.value_and_grad(loss, wanted, has_aux=True))
    (_, out), gradients = run(q, k, v, table)
    return out, *gradients


@pytest.mark.parametrize("name", CASES)
def test_flash_equals_dense_with_all_gradients(name):
    # float32; 5e-5 of entries of order 1 to 10
    inputs = arrays(name)
    expected = value_and_gradients(*inputs, backend=dense)
    actual = value_and_gradients(*inputs, backend=flash)
    for a, b in zip(expected, actual, strict=True):
        assert float(jnp.max(jnp.abs(a))) > 0.05
        np.testing.assert_allclose(b, a, atol=5e-5)


def test_rows_without_a_visible_key_see_the_null_keys_alone():
    q, k, v, _, _, options = arrays("text")
    options["key_mask"] = np.zeros_like(options["key_mask"])
    out = quick_jit(functools.partial(flash, bias=None, **options))(q, k, v)
    alone = dense(q, k[:, :2], v[:, :2], scale=options["scale"])
    np.testing.assert_allclose(out, alone, atol=2e-6)


@pytest.mark.parametrize("mesh_shape", [(2, 1, 2), (4, 2, 1)])
def test_each_device_runs_its_own_samples_and_heads(mesh_shape):
    # (4, 2, 1) has more shares than samples: every device then computes all of them
    q, k, v, table, grid, options = arrays("frames_of_several_blocks")
    alone = value_and_gradients(q, k, v, table, grid, options, backend=dense)
    with jax.set_mesh(make_mesh(mesh_shape)):
        split = value_and_gradients(q, k, v, table, grid, options, backend=flash)
    for expected, actual in zip(alone, split, strict=True):
        np.testing.assert_allclose(jax.device_get(actual), expected, atol=5e-5)


def test_sixteen_bits_stay_close_to_float32():
    # bfloat16 has 8 bits of precision: outputs of order 1 within 2 %
    q, k, v, table, grid, options = arrays("frames_of_several_blocks")
    exact = dense(q, k, v, bias=RelativeBias(table, grid), **options)
    q, k, v = (x.astype(jnp.bfloat16) for x in (q, k, v))
    run = functools.partial(flash, bias=RelativeBias(table, grid), **options)
    out = quick_jit(run)(q, k, v)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.03)


@pytest.mark.parametrize("name", ["frames_of_several_blocks", "text"])
def test_cudnn_route_without_cudnn(name):
    q, k, v, table, grid, options = arrays(name)
    bias = None if table is None else RelativeBias(table, grid)
    expected = dense(q, k, v, bias=bias, **options)
    run = functools.partial(attend_cudnn, bias=bias, implementation="xla", **options)
    np.testing.assert_allclose(quick_jit(run)(q, k, v), expected, atol=5e-6)


def test_choice_follows_size_and_device():
    few, many = jnp.zeros((1, 4096, 2, 8)), jnp.zeros((64, 4096, 2, 8))
    assert choose_backend(few, 100, None) == "batched"
    assert choose_backend(few, 64 * 1024, None) == "unrolled"
    assert choose_backend(many, 64 * 1024, None) == "batched"
    assert choose_backend(few, 4096**2, None) == "chunked"


def test_tiles_of_wide_frames_do_not_fit():
    tables = {
        grid: jnp.zeros((1, *(2 * n - 1 for n in grid))) for grid in ((101, 8, 8), (101, 24, 24))
    }
    fits = {grid: fits_flash(RelativeBias(table, grid)) for grid, table in tables.items()}
    assert fits == {(101, 8, 8): True, (101, 24, 24): False}


def test_layers_that_share_the_tiles_compute_the_same():
    q, k, v, table, grid, options = arrays("frames_of_several_blocks")

    def layers(table, share):
        bias = RelativeBias(table, grid)
        bias = shared_bias(bias, "flash") if share else bias
        first = attention(q, k, v, bias=bias, backend="flash", **options)
        second = attention(first, k, v, bias=bias, backend="flash", **options)
        return jnp.sum(jnp.sin(3 * second))

    run = jax.value_and_grad(layers)
    for one, other in zip(run(table, True), run(table, False), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)

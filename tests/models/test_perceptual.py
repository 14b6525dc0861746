"""VGG-16 features against SciPy's correlation under torchvision's tensor names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from scipy.signal import correlate

from gct_jax.errors import ModelFolderError
from gct_jax.models.perceptual import (
    VGG16Features,
    adaptive_average_pool,
    vgg16_from_torchvision,
)
from gct_jax.sharding import BATCH, make_mesh, state_shardings
from launch.plan.hlo import collective, instructions

WIDTHS = (3, 2, 4, 2, 3)
# torchvision's configuration D: index of each convolution in `features`, pools in between.
INDICES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))


def random_state():
    rng = np.random.default_rng(0)
    state, channels = {}, 3
    for width, indices in zip(WIDTHS, INDICES, strict=True):
        for index in indices:
            weight = rng.normal(size=(width, channels, 3, 3)) / np.sqrt(4.5 * channels)
            state[f"features.{index}.weight"] = weight.astype(np.float32)
            state[f"features.{index}.bias"] = rng.normal(size=width).astype(np.float32) / 4
            channels = width
    for index, inputs in ((0, 49 * channels), (3, 6), (6, 6)):
        weight = rng.normal(size=(6, inputs)) / np.sqrt(inputs)
        state[f"classifier.{index}.weight"] = weight.astype(np.float32)
        state[f"classifier.{index}.bias"] = rng.normal(size=6).astype(np.float32)
    return state


def pool_by_loops(x, size):
    """[channels, H, W] -> [channels, size, size]."""
    out = np.zeros((len(x), size, size))
    for i, j in np.ndindex(size, size):
        rows = slice(i * x.shape[1] // size, int(np.ceil((i + 1) * x.shape[1] / size)))
        columns = slice(j * x.shape[2] // size, int(np.ceil((j + 1) * x.shape[2] / size)))
        out[:, i, j] = x[:, rows, columns].mean((1, 2))
    return out


def features_by_scipy(state, image):
    x = image.astype(np.float64)
    for indices in INDICES:
        for index in indices:
            kernels = state[f"features.{index}.weight"]
            padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
            x = np.stack([correlate(padded, k, mode="valid")[0] for k in kernels])
            x = np.maximum(x + state[f"features.{index}.bias"][:, None, None], 0)
        c, h, w = x.shape
        x = x.reshape(c, h // 2, 2, w // 2, 2).max((2, 4))
    x = pool_by_loops(x, 7).reshape(-1)
    for index in (0, 3):
        weight, bias = (state[f"classifier.{index}.{name}"] for name in ("weight", "bias"))
        x = np.maximum(weight @ x + bias, 0)
    return x


def test_features_of_a_gray_slice():
    state = random_state()
    slices = np.random.default_rng(1).uniform(-1, 1, (2, 64, 64, 1)).astype(np.float32)
    module = VGG16Features(widths=WIDTHS, classifier_width=6)
    params = vgg16_from_torchvision(state)
    actual = jax.jit(module.apply)({"params": params}, slices)
    for row, image in zip(actual, slices, strict=True):
        expected = features_by_scipy(state, np.repeat(image[None, ..., 0], 3, axis=0))
        assert expected.max() > 0.1
        np.testing.assert_allclose(row, expected, atol=1e-5)


@pytest.mark.parametrize(
    "shape", [(2, 2, 2), *(pytest.param(s, marks=pytest.mark.slow) for s in ((2, 4, 1), (1, 1, 8)))]
)
def test_devices_share_the_wide_layers_and_send_rows_instead_of_kernels(shape):
    mesh = make_mesh(shape)
    module = VGG16Features(widths=WIDTHS, classifier_width=16)
    slices = np.random.default_rng(1).uniform(-1, 1, (8, 32, 32, 1)).astype(np.float32)
    params = {"vgg16": module.init(jax.random.key(0), slices)["params"]}

    def loss(slices, params):
        features = module.apply({"params": params["vgg16"]}, slices)
        return jnp.square(features - jnp.arange(16)).mean()

    run = jax.jit(jax.value_and_grad(loss))
    alone = run(slices, params)
    shardings = state_shardings(params, mesh)
    placed = jax.device_put(params, shardings)
    kernel = placed["vgg16"]["dense_0"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape)[1] == 16 // (shape[1] * shape[2])
    with jax.set_mesh(mesh):
        rows = jax.device_put(slices, NamedSharding(mesh, BATCH))
        split = run(rows, placed)
        text = run.lower(rows, placed).compile().as_text()
    for one, other in zip(alone, split, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6 * float(jnp.abs(one).max()))
    gathers = [one for one in instructions(text) if collective(one.operation) == "all-gather"]
    assert not any(str(kernel.shape)[1:-1].replace(" ", "") in one.result for one in gathers)


def test_published_shapes():
    shapes = jax.eval_shape(
        VGG16Features().init, jax.random.key(0), jax.ShapeDtypeStruct((1, 128, 128, 1), "float32")
    )
    # 138 357 544 of the whole network less its last layer of 4096 x 1000 + 1000.
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == 138_357_544 - 4_097_000


@pytest.mark.parametrize(("shape", "size"), [((4, 4), 7), ((14, 9), 7), ((128, 128), 8)])
def test_adaptive_pool(shape, size):
    x = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype(np.float32)
    actual = adaptive_average_pool(jnp.asarray(x), size)
    for sample, pooled in zip(x, actual, strict=True):
        expected = pool_by_loops(np.moveaxis(sample, -1, 0), size)
        np.testing.assert_allclose(pooled, np.moveaxis(expected, 0, -1), atol=1e-6)


def test_missing_tensor_is_named():
    state = random_state()
    del state["features.10.bias"]
    with pytest.raises(ModelFolderError, match=r"features\.10\.bias"):
        vgg16_from_torchvision(state)

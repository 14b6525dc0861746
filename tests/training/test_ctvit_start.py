"""The principal start against SVD, the closed form of ridge regression, and what it promises."""

import jax
import numpy as np
import pytest
from compiling import quick_jit
from scipy.linalg import subspace_angles

from configs import tiny
from gct_jax.config import override
from gct_jax.errors import ConfigError
from gct_jax.models.ctvit import CTViT
from gct_jax.models.quantizer import l2_normalize
from gct_jax.parts import build_part, init_part
from gct_jax.training import ctvit_start


def low_rank_patches(count, values, rank, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, rank)) @ rng.normal(size=(rank, values)) + rng.normal(
        size=values
    )


def test_embedding_keeps_distances_in_the_principal_axes_and_has_mean_zero():
    patches = low_rank_patches(400, 24, 5)
    kernel, bias = ctvit_start.principal_embedding(patches, dim=16)
    embedded = patches @ kernel + bias
    np.testing.assert_allclose(embedded.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(  # all of rank 5 fits into 14 axes
        np.linalg.norm(embedded[1:] - embedded[:-1], axis=1),
        np.linalg.norm(patches[1:] - patches[:-1], axis=1),
        rtol=1e-4,
    )
    centred = patches - patches.mean(0)
    length = np.sqrt(np.mean(np.sum(centred**2, axis=1)))
    np.testing.assert_allclose(np.linalg.norm(embedded.mean(0)), length, rtol=1e-4)


def test_embedding_chooses_the_largest_axes():
    rng = np.random.default_rng(1)
    patches = rng.normal(size=(500, 12)) * np.arange(12, 0, -1) ** 2
    kernel, _ = ctvit_start.principal_embedding(patches, dim=6)
    axes = np.linalg.svd(patches - patches.mean(0), full_matrices=False)[2][:4]
    kept = np.linalg.svd(kernel)[0][:, :4]
    np.testing.assert_allclose(subspace_angles(axes.T, kept), 0, atol=1e-4)


def test_ridge_regression_finds_an_affine_map():
    rng = np.random.default_rng(2)
    inputs, kernel, bias = rng.normal(size=(300, 7)), rng.normal(size=(7, 3)), rng.normal(size=3)
    found = ctvit_start.ridge_regression(inputs, inputs @ kernel + bias)
    np.testing.assert_allclose(found[0], kernel, atol=1e-4)
    np.testing.assert_allclose(found[1], bias, atol=1e-4)


def smooth_volumes(count, seed):
    """Volumes [count, 5, 16, 16, 1] of a few random plane waves."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(np.arange(5), np.arange(16), np.arange(16), indexing="ij")
    waves = np.zeros((count, 5, 16, 16))
    for _ in range(3):
        speed, phase = rng.uniform(-0.4, 0.4, (3, count)), rng.uniform(0, 6, count)
        waves += np.sin(
            np.tensordot(speed, np.stack([z, y, x]), (0, 0)) + phase[:, None, None, None]
        )
    return (waves / 3)[..., None].astype(np.float32)


def test_before_any_step_the_network_rebuilds_volumes_that_it_has_not_seen():
    config = tiny.ctvit()
    network = build_part(config.model, "ctvit")
    started = ctvit_start.principal_variables(config, smooth_volumes(48, 3))
    drawn = init_part(config.model, "ctvit", jax.random.key(config.loop.seed))
    assert jax.tree.map(np.shape, started) == jax.tree.map(np.shape, drawn)
    volumes = smooth_volumes(8, 4)

    @quick_jit
    def rebuild(variables):
        directions = l2_normalize(network.apply(variables, volumes, method=CTViT.embed))
        return network.apply(variables, directions, method=CTViT.decode_latents)

    spread = volumes.std()
    assert np.sqrt(np.mean((rebuild(started) - volumes) ** 2)) < 0.25 * spread
    assert np.sqrt(np.mean((rebuild(drawn) - volumes) ** 2)) > 0.9 * spread


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("model.ctvit.patch_norm=both", "patch_norm 'output', not 'both'"),
        ("ctvit.principal_start=17", "principal_start = 17 is more than the 16 training cases"),
    ],
)
def test_what_no_start_can_serve_is_refused(field, message):
    config = override(tiny.ctvit(), ["ctvit.principal_start=16", field])
    with pytest.raises(ConfigError, match=message):
        ctvit_start.check_principal_start(config)

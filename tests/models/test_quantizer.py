"""The quantiser against the reference's golden arrays, and our mended statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_case import GoldenCase
from jax.sharding import NamedSharding, PartitionSpec

from gct_jax.errors import ConfigError
from gct_jax.models import quantizer
from gct_jax.models.quantizer import CosineQuantizer
from gct_jax.training.ctvit_losses import commitment_loss


@pytest.fixture(scope="module")
def case():
    return GoldenCase("vq_ema")


def reference_codebook(case):
    weights = case.weights()
    return {
        "embedding": jnp.asarray(weights["_codebook.embed"][0]),
        "cluster_size": jnp.asarray(weights["_codebook.cluster_size"][0]),
    }


def test_every_reference_quantity(case):
    codebook = reference_codebook(case)
    module = CosineQuantizer(dim=32, codebook_size=64)
    variables = {"codebook": codebook}

    @jax.jit
    def run(x, mask, upstream):
        ids = module.apply(variables, x, method=CosineQuantizer.choose)
        codes = module.apply(variables, ids, method=CosineQuantizer.lookup)
        once = quantizer.ema_update(codebook, x, ids, decay=0.8, weighting="code")
        # The original's second call chooses with the codebook of the first.
        second_ids = quantizer.nearest_codes(x, once["embedding"])
        twice = quantizer.ema_update(once, x, second_ids, decay=0.8, weighting="code")

        def objective(x):
            quantized = quantizer.straight_through(x, codes)
            commitment = commitment_loss(x, codes, form="reference")
            return jnp.sum(quantized * upstream) + commitment, (quantized, commitment)

        gradient, (quantized, commitment) = jax.grad(objective, has_aux=True)(x)
        masked = commitment_loss(x, codes, form="reference", token_mask=mask)
        return {
            "codebook_before": codebook["embedding"][None],
            "cluster_size_before": codebook["cluster_size"][None],
            "eval_quantized": codes,
            "indices": ids,
            "quantized": quantized,
            "commit_loss": commitment[None],
            "codebook_after": once["embedding"][None],
            "cluster_size_after": once["cluster_size"][None],
            "grad_x": gradient,
            "codebook_after_2": twice["embedding"][None],
            "cluster_size_after_2": twice["cluster_size"][None],
            "commit_loss_masked": masked[None],
        }

    results = run(*case.inputs("x", "mask", "upstream_grad"))
    # Evaluation has no commitment term here; the original reports a constant zero.
    assert case.output("eval_loss").tolist() == [0.0]
    assert set(results) | {"eval_loss"} == {
        name.removeprefix("out__") for name in case.arrays if name.startswith("out__")
    }
    np.testing.assert_array_equal(results["indices"], case.output("indices"))
    for name, value in results.items():
        case.check(name, value)


def random_batch(seed=0, tokens=(4, 6), dim=5, codes=7):
    rng = np.random.default_rng(seed)
    codebook = {
        "embedding": rng.normal(size=(codes, dim)).astype(np.float32),
        "cluster_size": rng.uniform(0.5, 3.0, codes).astype(np.float32),
    }
    latents = rng.normal(size=(*tokens, dim)).astype(np.float32)
    ids = jax.jit(quantizer.nearest_codes)(latents, codebook["embedding"])
    return codebook, latents, np.asarray(ids)


update = jax.jit(quantizer.ema_update, static_argnames="weighting")


@pytest.mark.parametrize("shape", [(2, 5, 3), (3, 4), (7,)])
def test_nearest_codes_in_chunks_are_those_of_all_similarities(monkeypatch, shape):
    monkeypatch.setattr(quantizer, "CHUNK_TOKENS", 4)
    rng = np.random.default_rng(7)
    latents = rng.normal(size=(*shape, 6)).astype(np.float32)
    rows = rng.normal(size=(9, 6)).astype(np.float32)
    ids = quantizer.nearest_codes(latents, rows)
    assert ids.dtype == jnp.int32
    np.testing.assert_array_equal(
        ids, (latents @ (rows / np.linalg.norm(rows, axis=1)[:, None]).T).argmax(-1)
    )


def test_count_weighting_is_a_running_mean_over_valid_tokens():
    codebook, latents, ids = random_batch()
    mask = np.arange(6) < np.array([[6], [4], [0], [6]])
    updated = update(codebook, latents, ids, decay=0.9, token_mask=mask)
    updated = jax.tree.map(np.asarray, updated)
    for code in range(7):
        chosen = latents[(ids == code) & mask].astype(np.float64)
        directions = chosen / np.linalg.norm(chosen, axis=-1, keepdims=True)
        size = 0.9 * codebook["cluster_size"][code] + 0.1 * len(chosen)
        total = 0.9 * codebook["cluster_size"][code] * codebook["embedding"][code]
        np.testing.assert_allclose(updated["cluster_size"][code], size, rtol=1e-6)
        np.testing.assert_allclose(
            updated["embedding"][code], (total + 0.1 * directions.sum(0)) / size, rtol=1e-5
        )


def test_masked_tokens_change_nothing():
    codebook, latents, ids = random_batch()
    mask = np.arange(6) < np.array([[6], [4], [0], [6]])
    other = np.where(mask[..., None], latents, np.float32(-7))
    for weighting in ("count", "code"):
        options = {"token_mask": mask, "weighting": weighting}
        first = update(codebook, latents, ids, **options)
        second = update(codebook, other, np.where(mask, ids, 3), **options)
        jax.tree.map(np.testing.assert_array_equal, first, second)


def test_a_fresh_codebook_of_size_zero_stays_finite():
    codebook, latents, ids = random_batch()
    codebook["cluster_size"] = np.zeros(7, np.float32)
    updated = np.asarray(update(codebook, latents, np.zeros_like(ids))["embedding"])
    assert np.isfinite(updated).all()
    np.testing.assert_array_equal(updated[1:], codebook["embedding"][1:])


def test_revival_replaces_exactly_the_dead_codes_by_valid_latents():
    codebook, latents, _ = random_batch()
    sizes = np.array([5.0, 0.01, 4.0, 0.0, 6.0, 0.5, 3.0], np.float32)  # mean 2.64
    codebook["cluster_size"] = sizes
    mask = np.zeros((4, 6), bool)
    mask[[1, 3], [2, 0]] = True
    revived = jax.jit(quantizer.revive_dead_codes)(
        jax.random.key(0), codebook, latents, threshold=0.1, token_mask=mask
    )
    revived = jax.tree.map(np.asarray, revived)
    alive = [0, 2, 4, 5, 6]
    for name in codebook:
        np.testing.assert_array_equal(revived[name][alive], codebook[name][alive])
    allowed = np.stack([latents[1, 2], latents[3, 0]])
    allowed /= np.linalg.norm(allowed, axis=1, keepdims=True)
    for code in (1, 3):
        distance = np.abs(allowed - revived["embedding"][code]).max(-1)
        assert distance.min() < 1e-6
        assert revived["cluster_size"][code] == pytest.approx(
            float(codebook["cluster_size"].mean())
        )


def test_codebook_from_latents_uses_valid_directions():
    _, latents, _ = random_batch()
    mask = np.zeros((4, 6), bool)
    mask[2, 3] = True
    start = jax.jit(quantizer.codebook_from_latents, static_argnums=2)
    codebook = start(jax.random.key(1), latents, 9, mask)
    expected = np.tile(latents[2, 3] / np.linalg.norm(latents[2, 3]), (9, 1))
    np.testing.assert_allclose(codebook["embedding"], expected, atol=1e-6)
    np.testing.assert_allclose(codebook["cluster_size"], 1 / 9, rtol=1e-6)


def test_usage_in_closed_form():
    usage = jax.jit(quantizer.codebook_usage, static_argnums=1)
    uniform = usage(np.arange(8).reshape(2, 4), 16)
    assert uniform["usage"] == pytest.approx(0.5)
    assert uniform["perplexity"] == pytest.approx(8, rel=1e-5)
    mask = np.array([[True, True, True, False], [False] * 4])
    masked = usage(np.array([[1, 1, 1, 2], [3, 3, 3, 3]]), 4, mask)
    assert masked["usage"] == pytest.approx(0.25)
    assert masked["perplexity"] == pytest.approx(1)


def test_statistics_are_summed_over_devices():
    codebook, latents, ids = random_batch(tokens=(8, 6))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())

    @jax.jit
    def step(key, codebook, latents, ids):
        codebook = quantizer.ema_update(codebook, latents, ids)
        return quantizer.revive_dead_codes(key, codebook, latents, threshold=0.6)

    key = jax.random.key(3)
    one = step(key, codebook, latents, ids)
    many = step(
        key,
        jax.device_put(codebook, whole),
        jax.device_put(latents, spread),
        jax.device_put(ids, spread),
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, many)


def test_unknown_weighting():
    with pytest.raises(ConfigError, match="weighting 'mean'"):
        quantizer.ema_update(*random_batch(), weighting="mean")

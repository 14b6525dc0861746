"""CT-ViT: golden outputs of the published arithmetic, and causality of ours."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from golden_case import GoldenCase

from gct_jax.config import module_fields
from gct_jax.interop.generatect.ctvit import ctvit_from_reference, discriminator_from_reference
from gct_jax.kernels.bias import bias_matrix
from gct_jax.models.ctvit import CTViT, slice_to_token_mask
from gct_jax.models.discriminator import Discriminator
from gct_jax.models.quantizer import cosine_similarity
from gct_jax.models.token_grid import nearest_slice_count, slice_count, token_grid


@pytest.fixture(scope="module")
def case():
    return GoldenCase("ctvit")


@pytest.fixture(scope="module")
def published(case):
    config, variables = ctvit_from_reference(case.weights())
    return CTViT(**module_fields(config)), variables


def channel_first(volume):
    return np.moveaxis(np.asarray(volume), -1, 1)


@pytest.mark.parametrize("name", ["f1", "f5", "f9", "image_4d"])
def test_reference_passes(case, published, name):
    module, variables = published
    volume = case.arrays["in__image_4d" if name == "image_4d" else f"in__video_{name}"]
    if volume.ndim == 4:
        volume = volume[:, :, None]
    volume = np.moveaxis(volume, 1, -1)

    def everything(module, volume):
        out = module(volume)
        similarity = cosine_similarity(out.latents, module.quantizer.embedding.value)
        best = jnp.sort(similarity, axis=-1)
        return {
            "patch_tokens": module.embed_patches(volume),
            "encoded_tokens": out.latents,
            "quantized_tokens": out.codes,
            "codebook_ids": out.ids,
            "reconstruction": out.reconstruction,
            "decode_from_codebook_indices_every4": module.decode(out.ids)[:, :, ::4, ::4],
            "cosine_top2_margin_min": jnp.min(best[..., -1] - best[..., -2]),
        }

    compiled = quick_jit(functools.partial(module.apply, method=everything))
    results = compiled(variables, volume)
    names = {n.split("__", 2)[2] for n in case.arrays if n.startswith(f"out__{name}__")}
    assert names == set(results)
    ids = case.arrays[f"out__{name}__codebook_ids"]
    np.testing.assert_array_equal(results["codebook_ids"], ids)
    for quantity, value in results.items():
        expected = case.arrays[f"out__{name}__{quantity}"]
        if quantity in ("reconstruction", "decode_from_codebook_indices_every4"):
            value = channel_first(value)
        np.testing.assert_allclose(
            np.asarray(value).reshape(expected.shape),
            expected,
            rtol=0,
            atol=case.tolerance(f"{name}__{quantity}"),
            err_msg=quantity,
        )


def test_reference_position_bias(case, published):
    module, variables = published

    def matrix(module):
        return bias_matrix(module.spatial_bias((5, 8, 8)))

    actual = quick_jit(functools.partial(module.apply, method=matrix))(variables)
    case.check("spatial_rel_pos_bias", actual)


def test_reference_discriminator(case):
    attributes, params = discriminator_from_reference(case.weights())
    (images,) = case.inputs("discr_images")
    logits = quick_jit(Discriminator(**attributes).apply)({"params": params}, images)
    case.check("discr_logits", logits)


def test_reference_token_counts_and_masks(case):
    patches = {"patch_size": 16, "temporal_patch_size": 2}
    for slices, *grid in case.output("patch_shape_table").tolist():
        assert token_grid(slices, 128, 128, **patches) == tuple(grid)
    for slices, tokens in case.output("num_tokens_table").tolist():
        assert np.prod(token_grid(slices, 128, 128, **patches)) == tokens
    for slices, tokens in case.output("num_tokens_table_no_first").tolist():
        # Slices appended to an existing volume: the tokens beyond those of its one slice.
        assert np.prod(token_grid(1 + slices, 128, 128, **patches)) - 64 == tokens
    mask = slice_to_token_mask(jnp.asarray(case.arrays["in__pad_mask"]), (5, 8, 8), 2)
    np.testing.assert_array_equal(mask.reshape(3, -1), case.output("video_token_mask"))


SMALL = {
    "dim": 16,
    "codebook_size": 32,
    "patch_size": 4,
    "temporal_patch_size": 2,
    "spatial_depth": 1,
    "temporal_depth": 1,
    "heads": 2,
    "dim_head": 8,
}


def random_leaf(rng, path, shape):
    """Weights that keep activations of order one; gains and biases that matter."""
    name = path[-1].key
    noise = rng.normal(size=shape)
    if name == "kernel":
        noise /= np.sqrt(27 if len(shape) == 4 else shape[0])
    elif name == "bias":
        noise *= 0.2
    elif name in ("scale", "query_scale", "key_scale"):
        noise = 1 + 0.3 * noise
    return noise.astype(np.float32)


@functools.cache
def small(**options):
    """A small CT-ViT with random parameters and its compiled encoder and decoder."""
    module = CTViT(**SMALL, **options)
    shapes = jax.eval_shape(module.init, jax.random.key(0), volume_of(1))
    rng = np.random.default_rng(0)
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: random_leaf(rng, path, leaf.shape), shapes
    )
    encode, decode = (
        quick_jit(functools.partial(module.apply, variables, method=method))
        for method in (CTViT.encode, CTViT.decode)
    )
    return module, variables, encode, decode


def volume_of(depth, seed=1):
    return np.random.default_rng(seed).uniform(-1, 1, (2, depth, 8, 12, 1)).astype(np.float32)


def test_earlier_tokens_do_not_depend_on_later_slices():
    _, _, encode, _ = small()
    volume = volume_of(9)
    whole = np.asarray(encode(volume))  # token frames end at slices 1, 3, 5, 7, 9
    assert whole.shape == (2, 5, 2, 3) and whole.dtype == np.int32
    assert len(np.unique(whole)) > 8
    for frames in (1, 2, 4):
        seen = slice_count(frames, 2)
        changed = volume.copy()
        changed[:, seen:] *= -1
        ids = np.asarray(encode(changed))
        np.testing.assert_array_equal(ids[:, :frames], whole[:, :frames])
        assert (ids[:, frames:] != whole[:, frames:]).any()
    np.testing.assert_array_equal(encode(volume[:, :5]), whole[:, :3])


def test_decoding_the_first_frames_gives_the_first_slices():
    _, _, _, decode = small()
    ids = np.random.default_rng(3).integers(0, 32, (2, 5, 2, 3), np.int32)
    whole = np.asarray(decode(ids))
    assert whole.shape == (2, 9, 8, 12, 1) and whole.dtype == np.float32
    np.testing.assert_allclose(decode(ids[:, :3]), whole[:, :5], atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"temporal_attention": "bidirectional"}, {"temporal_peg": "interleaved"}],
)
def test_either_published_quirk_breaks_causality(options):
    module, variables, _, _ = small(**options)
    embed = quick_jit(functools.partial(module.apply, variables, method=CTViT.embed))
    volume = volume_of(9)
    changed = volume.copy()
    changed[:, 7:] = 0
    difference = np.asarray(embed(changed)) - np.asarray(embed(volume))
    assert np.abs(difference[:, :4]).max() > 1e-3


def test_density_of_an_even_patch_is_lost_only_to_the_norm_of_raw_patches():
    def spread(patch_norm):
        module, variables, _, _ = small(patch_norm=patch_norm)
        embed = quick_jit(functools.partial(module.apply, variables, method=CTViT.embed_patches))
        air_and_bone = np.stack([np.full((3, 8, 12, 1), hu, np.float32) for hu in (-1.0, 1.0)])
        air, bone = np.asarray(embed(air_and_bone))
        return np.abs(air - bone).max()

    assert spread("output") > 0.1
    assert spread("both") < 1e-5


def test_bfloat16_computes_ids_and_volumes_of_the_usual_types():
    module = CTViT(**SMALL, dtype=jnp.bfloat16)
    volume = jax.ShapeDtypeStruct((2, 5, 8, 12, 1), jnp.float32)
    out, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), volume)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert (out.reconstruction.dtype, out.ids.dtype) == (jnp.float32, jnp.int32)
    assert out.latents.dtype == jnp.bfloat16


def test_slice_counts_and_unknown_options():
    with pytest.raises(ValueError, match=r"32 slices.*multiple of 4; the nearest is 33"):
        token_grid(32, 64, 64, patch_size=8, temporal_patch_size=4)
    with pytest.raises(ValueError, match="60 x 64 are not a multiple of patch 8"):
        token_grid(33, 60, 64, patch_size=8, temporal_patch_size=4)
    for option in ("temporal_attention", "patch_norm", "temporal_peg"):
        with pytest.raises(ValueError, match="'neither'"):
            CTViT(**SMALL, **{option: "neither"}).init(jax.random.key(0), volume_of(1))
    wanted = {-3: 1, 0: 1, 1: 1, 2: 1, 3: 5, 5: 5, 6: 5, 7: 9, 33: 33, 34: 33, 201: 201}
    assert {n: nearest_slice_count(n, 4) for n in wanted} == wanted
    for slices in range(1, 30):
        nearest = nearest_slice_count(slices, 3)
        assert abs(nearest - slices) <= 1 and (nearest - 1) % 3 == 0
        assert slice_count(token_grid(nearest, 4, 4, patch_size=4, temporal_patch_size=3)[0], 3)

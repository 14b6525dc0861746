"""CT-ViT's losses: the reference's golden values and gradients, then our mended forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from golden_case import GoldenCase

from gct_jax.config import module_fields
from gct_jax.errors import ConfigError
from gct_jax.interop.generatect.ctvit import ctvit_from_reference, discriminator_from_reference
from gct_jax.models.ctvit import CTViT, slice_to_token_mask
from gct_jax.models.discriminator import Discriminator
from gct_jax.models.perceptual import adaptive_average_pool
from gct_jax.models.quantizer import ema_update
from gct_jax.training import ctvit_losses as losses

VARIANTS = ("later", "first", "masked")


def pooled_features(slices):
    """The feature network that the golden run was given in place of VGG-16."""
    return adaptive_average_pool(jnp.repeat(slices, 3, axis=-1), 8).reshape(slices.shape[0], -1)


@pytest.fixture(scope="module")
def case():
    return GoldenCase("ctvit_losses")


@pytest.fixture(scope="module")
def run(case):
    """All quantities of one reference training pass, compiled once for the three variants."""
    state = case.weights()
    config, variables = ctvit_from_reference(state)
    model = CTViT(**module_fields(config))
    attributes, discriminator_params = discriminator_from_reference(state)
    discriminator = Discriminator(**attributes)

    def generator(params, discriminator_params, volume, picked, slice_mask):
        def judge(slices):
            return discriminator.apply({"params": discriminator_params}, slices)

        out = model.apply({"params": params, "codebook": variables["codebook"]}, volume)
        real, fake = (losses.take_slices(v, picked) for v in (volume, out.reconstruction))

        def fake_slices(kernel):
            layer = {**params["pixels"], "kernel": kernel}
            pixels = {"params": {**params, "pixels": layer}}
            rebuilt = model.apply(pixels, out.features, method=CTViT.to_pixels)
            return losses.take_slices(rebuilt, picked)

        weight = losses.adaptive_weight(
            lambda kernel: losses.perceptual_loss(pooled_features, real, fake_slices(kernel)),
            lambda kernel: losses.generator_hinge_loss(judge(fake_slices(kernel))),
            params["pixels"]["kernel"],
        )
        token_mask = slice_to_token_mask(slice_mask, out.ids.shape[1:], config.temporal_patch_size)
        terms = {
            "recon_loss": losses.reconstruction_loss(volume, out.reconstruction, slice_mask),
            "commit_loss": losses.commitment_loss(
                out.latents, out.codes, form="reference", token_mask=token_mask
            ),
            "perceptual_loss": losses.perceptual_loss(pooled_features, real, fake),
            "gen_loss": losses.generator_hinge_loss(judge(fake)),
        }
        total = sum(terms.values()) + (weight - 1) * terms["gen_loss"]
        # The original lets padded tokens into the codebook, so this update has no mask.
        codebook = ema_update(
            variables["codebook"]["quantizer"],
            out.latents,
            out.ids,
            decay=0.8,
            weighting="code",
        )
        return total, (terms | {"adaptive_weight": weight}, codebook, real, fake)

    def judge_both(params, real, fake):
        def judge(slices):
            return discriminator.apply({"params": params}, slices)

        logits = {"discr_logits_fake": judge(fake), "discr_logits_real": judge(real)}
        hinge = losses.discriminator_hinge_loss(*logits.values())
        penalty = losses.gradient_penalty(judge, real)
        return hinge + penalty, logits | {"discr_hinge_loss": hinge, "gradient_penalty": penalty}

    @quick_jit
    def everything(volume, picked, slice_mask):
        (total, (terms, codebook, real, fake)), gradients = jax.value_and_grad(
            generator, (0, 1), has_aux=True
        )(variables["params"], discriminator_params, volume, picked, slice_mask)
        (discr_total, logits), discr_gradients = jax.value_and_grad(judge_both, has_aux=True)(
            discriminator_params, real, fake
        )
        encoder, decoder = gradients[0]["encoder_temporal"], gradients[0]["decoder_spatial"]
        named = {
            "to_pixels.0.weight": gradients[0]["pixels"]["kernel"].T,
            "to_patch_emb.2.weight": gradients[0]["patch_embedding"]["linear"]["kernel"].T,
            "enc_temporal_transformer.layers.0.0.dsconv.weight": jnp.moveaxis(
                encoder["layers_0"]["peg"]["kernel"], -1, 0
            )[:, None],
            "dec_spatial_transformer.layers.0.1.q_scale": decoder["layers_0"]["self_attention"][
                "query_scale"
            ],
            "spatial_rel_pos_bias.net.0.0.weight": gradients[0]["spatial_bias"]["hidden_0"][
                "kernel"
            ].T,
        }
        return {
            **terms,
            "total_loss": total,
            **{f"grad__{k}": v[:64, :64] if v.ndim > 1 else v for k, v in named.items()},
            "grad_norm_all": norm(gradients),
            "codebook_after": codebook["embedding"][None],
            "cluster_size_after": codebook["cluster_size"][None],
            **logits,
            "discr_total": discr_total,
            "discr_grad_norm": norm(discr_gradients),
        }

    @functools.cache
    def variant(name):
        arrays = case.arrays
        volume = np.moveaxis(arrays["in__video"], 1, -1)
        mask = arrays["in__frame_mask"] if name == "masked" else np.ones(volume.shape[:2], bool)
        picked = losses.choose_slices(
            jnp.asarray(arrays[f"in__pick_frame_logits_{name}"]), mask, include_first=True
        )
        return everything(volume, picked, mask) | {"picked_frame": picked[:, None]}

    return variant


def norm(tree):
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.long
def test_every_reference_quantity(case, run, variant):
    result = run(variant)
    names = {n.split("__", 2)[2] for n in case.arrays if n.startswith(f"out__{variant}__")}
    assert names == set(result)
    for name in sorted(names):
        expected = case.arrays[f"out__{variant}__{name}"]
        np.testing.assert_allclose(
            np.asarray(result[name]).reshape(expected.shape),
            expected,
            rtol=0,
            atol=0 if name == "picked_frame" else case.tolerance(f"{variant}__{name}"),
            err_msg=name,
        )


def test_slice_zero_is_chosen_only_on_request_or_alone():
    scores = jnp.array([[9.0, 1.0, 3.0, 2.0], [0.0, 1.0, 2.0, 5.0]])
    mask = jnp.array([[True, True, True, True], [True, True, True, False]])
    assert losses.choose_slices(scores, mask).tolist() == [2, 2]
    assert losses.choose_slices(scores, mask, include_first=True).tolist() == [0, 2]
    assert losses.choose_slices(scores[:, :1]).tolist() == [0, 0]


def test_take_slices():
    volume = jnp.arange(2 * 3 * 2 * 2 * 1.0).reshape(2, 3, 2, 2, 1)
    picked = losses.take_slices(volume, jnp.array([2, 0]))
    np.testing.assert_array_equal(picked, np.stack([volume[0, 2], volume[1, 0]]))


def test_normalized_commitment_turns_but_does_not_shrink_latents():
    latents = jnp.array([[3.0, 4.0], [2.0, 0.0], [0.0, 0.0]])
    codes = jnp.array([[0.0, 0.5], [0.3, 0.0], [1.0, 0.0]])
    value, gradient = jax.value_and_grad(losses.commitment_loss)(latents, codes)
    assert value == pytest.approx((0.2 + 0.0 + 1.0) / 3)
    assert jnp.sum(gradient * latents, axis=1) == pytest.approx(np.zeros(3), abs=1e-6)
    assert bool(jnp.all(jnp.isfinite(gradient)))
    masked = losses.commitment_loss(latents, codes, token_mask=jnp.array([True, False, False]))
    assert masked == pytest.approx(0.2)
    with pytest.raises(ConfigError, match="form 'raw'"):
        losses.commitment_loss(latents, codes, form="raw")


def test_adaptive_weight_is_the_capped_ratio_and_a_constant():
    kernels = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([3.0])}

    def linear(factor):
        return lambda k: factor * (2 * jnp.sum(k["a"]) + jnp.sum(k["b"]))

    assert losses.adaptive_weight(linear(6.0), linear(2.0), kernels) == pytest.approx(3.0)
    assert losses.adaptive_weight(linear(1.0), linear(0.0), kernels) == pytest.approx(1e4)
    slope = jax.grad(lambda f: losses.adaptive_weight(linear(f), linear(2.0), kernels))(6.0)
    assert slope == 0


def test_gradient_penalty_of_a_flat_discriminator_is_finite():
    images = jnp.ones((2, 4, 4, 1))

    def penalty(slope):
        return losses.gradient_penalty(lambda x: slope * jnp.sum(x, (1, 2, 3)), images)

    value, derivative = jax.value_and_grad(penalty)(0.0)
    assert value == pytest.approx(10.0)
    assert jnp.isfinite(derivative)
    assert penalty(0.5) == pytest.approx(10 * (0.5 * 4 - 1) ** 2)  # |gradient| = slope * sqrt(16)

"""Losses of CT-ViT and its slice discriminator (GenerateCT, section 3.1), as pure functions.

With x a volume, y its reconstruction, D the discriminator's logit, phi a frozen feature network,
z a latent, e its code row, ^ a direction, and one slice s picked from each sample:

    reconstruction   mean (x - y)^2                                                     (1)
    commitment       mean 1 - <z^, stop(e)^>                 form "normalized"          (2)
                     mean (z - stop(e))^2                    form "reference"           (3)
    perceptual       mean (phi(x_s) - phi(y_s))^2                                       (4)
    generator        -mean D(y_s)                                                       (5)
    discriminator    mean relu(1 + D(y_s)) + relu(1 - D(x_s))                           (6)
    penalty          10 mean (|dD(x_s)/dx_s| - 1)^2                                     (7)
    weight of (5)    |d(4)/dW| / (|d(5)/dW| + 1e-8), at most 1e4                        (8)

W of equation (8) are the layers that wrote the picked slices (Esser et al. 2021, "Taming
Transformers", equation 7). Form (3) compares latents of any length with rows no longer than 1
and so shrinks the encoder instead of turning it; it is kept to reproduce published training.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gct_jax.errors import ConfigError
from gct_jax.models.norms import l2_normalize


def masked_mean(values: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Mean of `values` where `mask` (over their leading axes) is True."""
    if mask is None:
        return jnp.mean(values)
    mask = mask.reshape(*mask.shape, *[1] * (values.ndim - mask.ndim))
    mask = jnp.broadcast_to(mask, values.shape)
    return jnp.sum(values * mask) / jnp.maximum(jnp.sum(mask), 1)


def reconstruction_loss(
    volume: jax.Array, reconstruction: jax.Array, slice_mask: jax.Array | None = None
) -> jax.Array:
    """Equation (1) over [batch, depth, height, width, channels]; slice_mask: [batch, depth]."""
    return masked_mean((volume - reconstruction) ** 2, slice_mask)


def commitment_loss(
    latents: jax.Array,
    codes: jax.Array,
    *,
    form: str = "normalized",
    token_mask: jax.Array | None = None,
) -> jax.Array:
    """Equation (2) or (3); the code rows get no gradient.

    Args:
      latents, codes: [..., dim], encoder outputs and their code rows.
      form: "normalized" for (2), "reference" for (3).
      token_mask: [...] bool, True for tokens that count.

    Raises:
      ConfigError: an unknown form.
    """
    latents = latents.astype(jnp.float32)
    codes = lax.stop_gradient(codes).astype(jnp.float32)
    if form == "normalized":
        cosine = jnp.sum(l2_normalize(latents) * l2_normalize(codes), axis=-1)
        return masked_mean(1 - cosine, token_mask)
    if form == "reference":
        return masked_mean((latents - codes) ** 2, token_mask)
    raise ConfigError(f"form {form!r} is not one of 'normalized', 'reference'")


def choose_slices(
    scores: jax.Array, slice_mask: jax.Array | None = None, *, include_first: bool = False
) -> jax.Array:
    """One slice per sample: that of the highest score.

    Args:
      scores: [batch, depth], random for a random choice.
      slice_mask: [batch, depth] bool, False for slices never chosen.
      include_first: let slice 0 compete. It is written by a pixel layer of its own; the original
        lets it win while it takes W of equation (8) from the other layer, which makes the weight
        zero. A volume of one slice has no other choice.

    Returns:
      [batch] int32.
    """
    allowed = jnp.ones(scores.shape, bool) if slice_mask is None else slice_mask
    if not include_first and scores.shape[1] > 1:
        allowed = allowed.at[:, 0].set(False)
    return jnp.argmax(jnp.where(allowed, scores, -jnp.inf), axis=1).astype(jnp.int32)


def take_slices(volume: jax.Array, index: jax.Array) -> jax.Array:
    """[batch, depth, height, width, channels], [batch] -> [batch, height, width, channels]."""
    return jnp.take_along_axis(volume, index[:, None, None, None, None], axis=1)[:, 0]


def perceptual_loss(
    feature_fn: Callable[[jax.Array], jax.Array], real: jax.Array, fake: jax.Array
) -> jax.Array:
    """Equation (4); feature_fn maps slices [batch, height, width, channels] to [batch, ...]."""
    return jnp.mean((feature_fn(real) - feature_fn(fake)) ** 2)


def generator_hinge_loss(fake_logits: jax.Array) -> jax.Array:
    """Equation (5)."""
    return -jnp.mean(fake_logits)


def discriminator_hinge_loss(fake_logits: jax.Array, real_logits: jax.Array) -> jax.Array:
    """Equation (6)."""
    return jnp.mean(jax.nn.relu(1 + fake_logits) + jax.nn.relu(1 - real_logits))


def gradient_penalty(
    discriminator_fn: Callable[[jax.Array], jax.Array], real: jax.Array, weight: float = 10.0
) -> jax.Array:
    """Equation (7) on real slices [batch, height, width, channels]."""
    gradient = jax.grad(lambda images: jnp.sum(discriminator_fn(images)))(real)
    squares = jnp.sum(gradient**2, axis=(1, 2, 3))
    # A gradient of exactly zero would otherwise have an infinite derivative of its length.
    return weight * jnp.mean((jnp.sqrt(jnp.maximum(squares, 1e-24)) - 1) ** 2)


def adaptive_weight(
    perceptual: Callable[[Any], jax.Array],
    adversarial: Callable[[Any], jax.Array],
    pixel_kernels: Any,
    maximum: float = 1e4,
) -> jax.Array:
    """Equation (8), a constant with respect to gradients.

    Args:
      perceptual, adversarial: losses (4) and (5) as functions of the pixel layers' kernels; only
        `CTViT.to_pixels` and what follows has to be run anew.
      pixel_kernels: pytree of those kernels.
      maximum: upper limit of the weight.
    """

    def gradient_norm(loss):
        leaves = jax.tree.leaves(jax.grad(loss)(lax.stop_gradient(pixel_kernels)))
        return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in leaves))

    ratio = gradient_norm(perceptual) / (gradient_norm(adversarial) + 1e-8)
    return lax.stop_gradient(jnp.minimum(ratio, maximum))

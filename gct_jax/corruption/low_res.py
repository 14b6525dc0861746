"""The low-resolution image that a super-resolution model is conditioned on.

It is enlarged to the target size and noised a little (Ho et al. 2022, "Cascaded Diffusion
Models", section 3), so that the model does not trust every detail of the stage before it.
"""

import jax.numpy as jnp
from jaxtyping import Float

from gct_jax.array_types import Array, Images, PerImage
from gct_jax.corruption.diffusion import noise_schedule, q_sample


def resize_nearest(images: Array, size: int) -> Array:
    """[batch, h, w, channel] to [batch, size, size, channel]; output pixel i shows input pixel
    floor(i * h / size), as in PyTorch."""
    _, height, width, _ = images.shape
    rows = jnp.arange(size) * height // size
    columns = jnp.arange(size) * width // size
    return images[:, rows[:, None], columns[None, :]]


def noised_low_res(
    low_res: Float[Array, "batch low_height low_width channels"],
    noise: Images,
    time: PerImage,
    schedule: str = "linear",
) -> tuple[Images, PerImage]:
    """Enlarge `low_res` to the size of `noise`, clip it to [-1, 1] and noise it.

    Args:
      low_res: [batch, h, w, channel], values in [-1, 1].
      noise: [batch, size, size, channel], standard normal.
      time: [batch], in [0, 1]; 0 is nearly clean.
      schedule: "linear" or "cosine".

    Returns:
      the conditioning image like `noise`, and its log SNR [batch].
    """
    log_snr = noise_schedule(schedule)(time)
    enlarged = resize_nearest(jnp.clip(low_res, -1, 1), noise.shape[1])
    return q_sample(enlarged, noise, log_snr), log_snr

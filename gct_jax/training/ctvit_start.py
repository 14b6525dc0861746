"""Where CT-ViT's training starts: as a linear code of patches instead of as noise.

With x a patch of `embed_patches`, mu the mean patch, u_1 .. u_k the principal axes of patches,
q_0, q_1, .. orthonormal vectors of the network's width d with q_0 all equal, and c the root mean
square of |x - mu|:

    embed(x)  = c q_1 + sum_i q_(i+1) <u_i, x - mu>,    k = min(d - 2, values of a patch)    (1)

has mean 0, so that the layer norms behind it only divide it by its length, and thanks to c that
length hardly depends on x: distances between directions, by which the quantiser chooses, are
nearly those between patches. The last kernel of every residual branch is 0, which makes the
transformers identities, and the pixel layers are the ridge regression of patches on what arrives
there. CT-ViT then begins as principal component analysis, quantised; training adds the context.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gct_jax.errors import ConfigError
from gct_jax.models.ctvit import CTViT, to_patches
from gct_jax.models.quantizer import l2_normalize
from gct_jax.parts import build_part, init_part
from gct_jax.random_keys import random_key
from gct_jax.training.config import TrainConfig

TRANSFORMERS = ("encoder_spatial", "encoder_temporal", "decoder_temporal", "decoder_spatial")
RIDGE = 1e-6  # of the mean square of a feature
BATCH = 8  # volumes


def check_principal_start(config: TrainConfig) -> None:
    """Refuse what only a long preparation of cases would bring to light.

    Raises:
      ConfigError: the model has another `ctvit.patch_norm` than "output", or there are fewer
        training cases than the start asks for.
    """
    count, training_cases = config.ctvit.principal_start, config.data.cases - config.data.held_out
    if count > training_cases:
        raise ConfigError(
            f"ctvit.principal_start = {count} is more than the {training_cases} training cases"
        )
    assert config.model.ctvit is not None  # the stage trains it
    if config.model.ctvit.patch_norm != "output":
        raise ConfigError(
            "ctvit.principal_start needs a model with ctvit.patch_norm 'output', not "
            f"{config.model.ctvit.patch_norm!r}"
        )


def principal_variables(config: TrainConfig, volumes: np.ndarray) -> dict[str, Any]:
    """Fresh variables of the run's CT-ViT with the parameters of `principal_start`; `config` is one
    that `check_principal_start` accepts."""
    network = build_part(config.model, "ctvit")
    variables = init_part(config.model, "ctvit", random_key(config.loop.seed))
    return {**variables, "params": principal_start(network, variables["params"], volumes)}


def principal_start(network: CTViT, params: Any, volumes: np.ndarray) -> Any:
    """New parameters for CT-ViT's training.

    Args:
      network: with patch_norm "output"; a norm in front would erase what (1) keeps.
      params: freshly initialised; those that (1) does not concern are kept.
      volumes: [n, depth, height, width, channels] in [-1, 1], with more patches than a patch has
        values.
    """
    params = jax.tree.map(np.array, params)
    patches = [
        np.asarray(part, np.float64).reshape(-1, part.shape[-1])
        for part in to_patches(
            jnp.asarray(volumes),
            patch_size=network.patch_size,
            temporal_patch_size=network.temporal_patch_size,
        )
    ]
    for layer, rows in zip(("first_patch_embedding", "patch_embedding"), patches, strict=True):
        kernel, bias = principal_embedding(rows, network.dim)
        params[layer]["linear"] |= {"kernel": kernel, "bias": bias}
    for name in TRANSFORMERS:
        for layer in params[name].values():
            if "peg" in layer:  # a layer, not the norm behind the last one
                _silence(layer)
    batches = [volumes[first : first + BATCH] for first in range(0, len(volumes), BATCH)]
    features = np.concatenate([_features(network, params, batch) for batch in batches])
    for layer, rows, part in zip(
        ("first_pixels", "pixels"), patches, (features[:, :1], features[:, 1:]), strict=True
    ):
        kernel, bias = ridge_regression(part.reshape(-1, network.dim), rows)
        params[layer] = {"kernel": kernel, "bias": bias}
    return jax.tree.map(jnp.asarray, params)


@functools.partial(jax.jit, static_argnums=0)
def _features(network: CTViT, params: Any, volumes: jax.Array) -> jax.Array:
    """What the pixel layers see [batch, t, h, w, dim] of unquantised directions."""
    latents: Any = network.apply({"params": params}, volumes, method=CTViT.embed)
    features: Any = network.apply(
        {"params": params}, l2_normalize(latents), method=CTViT.decode_features
    )
    return features


def principal_embedding(patches: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Equation (1) for patches [n, values] as kernel [values, dim] and bias [dim], float32."""
    mean = patches.mean(0)
    centred = patches - mean
    _, axes = np.linalg.eigh(centred.T @ centred)  # ascending
    axes = axes[:, ::-1][:, : dim - 2]
    draws = np.random.default_rng(0).normal(size=(dim, dim - 1))
    basis = np.linalg.qr(np.column_stack([np.ones(dim), draws]))[0]
    kernel = axes @ basis[:, 2 : 2 + axes.shape[1]].T
    length = np.sqrt(np.mean(np.sum(centred**2, axis=1)))
    bias = length * basis[:, 1] - mean @ kernel
    return kernel.astype(np.float32), bias.astype(np.float32)


def ridge_regression(inputs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Kernel [p, q] and bias [q], float32, from inputs [n, p] and targets [n, q]."""
    inputs, targets = np.asarray(inputs, np.float64), np.asarray(targets, np.float64)
    input_mean, target_mean = inputs.mean(0), targets.mean(0)
    centred = inputs - input_mean
    penalty = RIDGE * len(inputs) * np.mean(inputs**2) * np.eye(inputs.shape[1])
    kernel = np.linalg.solve(centred.T @ centred + penalty, centred.T @ (targets - target_mean))
    bias = target_mean - input_mean @ kernel
    return kernel.astype(np.float32), bias.astype(np.float32)


def _silence(layer: dict[str, Any]) -> None:
    """Zero the last kernel of each branch of a transformer layer."""
    for end in (layer["peg"], layer["self_attention"]["out"], layer["feed_forward"]["out"]):
        end["kernel"] = np.zeros_like(end["kernel"])

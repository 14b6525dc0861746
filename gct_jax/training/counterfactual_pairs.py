"""Batches in which rows 2i and 2i + 1 are one patient, one image noise, other findings.

Where the rows of a pair differ is where their findings are, without anyone having outlined them:

    w = 1 + weight [|x - other row of the pair| > threshold]                                 (1)
"""

import jax
import jax.numpy as jnp

from gct_jax.errors import InputError


def exchange(rows: jax.Array) -> jax.Array:
    """Rows 2i and 2i + 1 of [b, ...] in each other's place.

    Raises:
      InputError: an odd number of rows.
    """
    if rows.shape[0] % 2:
        raise InputError(f"{rows.shape[0]} rows are no pairs of a patient and its counterfactual")
    return jnp.flip(rows.reshape(-1, 2, *rows.shape[1:]), axis=1).reshape(rows.shape)


def difference_weight(rows: jax.Array, weight: float, threshold: float = 0.0) -> jax.Array:
    """Equation (1), float32 in the shape of `rows` [b, ...]."""
    return 1 + weight * (jnp.abs(rows - exchange(rows)) > threshold).astype(jnp.float32)

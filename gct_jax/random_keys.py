"""Where random keys are made: by a named generator, so that a seed means the same everywhere.

Without a name JAX takes the generator of `JAX_DEFAULT_PRNG_IMPL`; of those, only threefry gives a
row of a batch the same numbers as the row alone.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gct_jax.config import LARGEST_SEED
from gct_jax.errors import InputError

GENERATOR = "threefry2x32"


def random_key(seed: int | jax.Array) -> jax.Array:
    """Typed key of `GENERATOR` for a seed from 0 to 2**32 - 1; see `require_seed`."""
    return jax.random.key(seed, impl=GENERATOR)


def row_uniforms(
    key: jax.Array, shape: tuple[int, ...], rows: jax.Array | None = None
) -> jax.Array:
    """Draws from U[0, 1), float32 of a shape [rows, ...]. Row i depends on (key, i) alone, and its
    first numbers not on how many follow: neither a longer batch nor padding at the end of a row
    changes them.

    rows: int32 [rows], the numbers i where they are a part of a batch; None: 0, 1, ...
    """
    numbers = jnp.arange(shape[0]) if rows is None else rows
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
    return jax.vmap(lambda own: jax.random.uniform(own, shape[1:]))(keys)


def require_seed(seed: int) -> None:
    """Raise InputError unless `seed` is a whole number from 0 to 2**32 - 1."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise InputError(f"seed {seed!r} is not a whole number")
    if not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"seed {seed} is not from 0 to {LARGEST_SEED}")


def wrapped_key(key_data: jax.Array) -> jax.Array:
    """The typed key whose data are uint32 [..., 2]."""
    return jax.random.wrap_key_data(key_data, impl=GENERATOR)

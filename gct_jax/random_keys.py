"""Where random keys are made: by a named generator, so that a seed means the same everywhere.

Without a name JAX takes the generator of `JAX_DEFAULT_PRNG_IMPL`; of those, only threefry gives a
row of a batch the same numbers as the row alone.
"""

import jax

GENERATOR = "threefry2x32"


def random_key(seed: int | jax.Array) -> jax.Array:
    """Typed key of `GENERATOR` for a seed from 0 to 2**32 - 1."""
    return jax.random.key(seed, impl=GENERATOR)


def wrapped_key(key_data: jax.Array) -> jax.Array:
    """The typed key whose data are uint32 [..., 2]."""
    return jax.random.wrap_key_data(key_data, impl=GENERATOR)

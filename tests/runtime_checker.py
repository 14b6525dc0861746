"""The checker of annotations under test: beartype, to which NumPy arrays are as good as JAX's."""

import jax
import numpy as np
from beartype import BeartypeConf, FrozenDict, beartype

check = beartype(
    conf=BeartypeConf(
        hint_overrides=FrozenDict({jax.Array: jax.Array | np.ndarray | np.generic}),
        is_pep484_tower=True,  # a whole number where a float is expected
    )
)

"""Shapes and types of arrays, as annotations say them (jaxtyping).

An axis of the same name has the same length throughout one call. The tests check every annotated
call of the packages that use these names; otherwise nothing is checked and nothing costs.
"""

from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Key, Num, Shaped

if TYPE_CHECKING:
    Array = jax.Array
else:
    Array = jax.Array | np.ndarray  # JAX takes NumPy's arrays wherever it takes its own

Keys = Key[Array, "batch"]  # typed random keys
RandomKey = Key[Array, ""]

Volume = Float[Array, "batch depth height width channels"]
Images = Float[Array, "batch height width channels"]
PerImage = Float[Array, "batch"]
LogSnr = Float[Array, "*levels"]

TokenIds = Int[Array, "batch t h w"]
TokenMask = Bool[Array, "batch t h w"]
PerToken = Float[Array, "batch t h w"]
Tokens = Float[Array, "batch t h w dim"]
Logits = Float[Array, "batch t h w codes"]

TextIds = Int[Array, "batch length"]
Text = Float[Array, "batch length text_dim"]
TextMask = Bool[Array, "batch length"]
Sequences = Float[Array, "batch positions dim"]

Queries = Float[Array, "batch queries heads dim_head"]
KeyRows = Float[Array, "batch keys heads dim_head"]
KeyMask = Bool[Array, "batch visible_keys"]

Scalar = Shaped[Array, ""]
Numbers = Num[Array, "..."]

"""Attention of many positions to few tokens, without the queries.

Where few tokens are attended to, the projections of the many positions, to queries and back, are
folded into the keys and values; with the weights W of head h and positions x,

    out = sum_h softmax( x (Wq_h k_h^T) / sqrt(dim_head) ) (v_h Wo_h)                        (1)

which is the same sum in another order. With as many positions at once as fit into its cache, a CPU
takes a ninth of the time for it, and neither queries nor logits are kept in memory. TPUs have a
kernel of their own (`gct_jax.kernels.folded_tpu`).
"""

import math

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array, lax

from gct_jax.kernels.folded_tpu import attend_folded
from gct_jax.kernels.reverse_mode import reverse_mode_only
from gct_jax.kernels.target import target_platform

CACHED_LOGITS = 768 * 1024  # 3 MiB of them at a time in `folded_attend`


def folded_attend(
    x: Array, key: Array, value: Array, query_kernel: Array, out_kernel: Array
) -> Array:
    """Equation (1); x [b, n, c], key and value [b, m, heads, d], kernels [c, heads * d] and
    [heads * d, c]. Returns [b, n, c]. On a TPU x may be a map [b, h, w, c]."""
    batch, tokens, heads, dim_head = key.shape
    query_kernel = rearrange(query_kernel, "c (h d) -> c h d", h=heads)
    out_kernel = rearrange(out_kernel, "(h d) c -> h d c", h=heads)
    values = jnp.einsum("bmhd,hdc->bhmc", value, out_kernel)
    if target_platform() == "tpu":
        keys = jnp.einsum("chd,bmhd->bhmc", query_kernel, key) * dim_head**-0.5
        with reverse_mode_only("folded attention on a TPU", 'backend="dense"'):
            return attend_folded(x, keys, values)
    _, positions, channels = x.shape
    keys = jnp.einsum("chd,bmhd->bchm", query_kernel, key) * dim_head**-0.5
    # Heads and tokens as one axis: two plain products, where XLA's CPU backend is fastest.
    keys = keys.astype(x.dtype).reshape(batch, channels, heads * tokens)
    values = values.reshape(batch, heads * tokens, -1)

    def attend_some(x: Array) -> Array:
        logits = jnp.matmul(x, keys, preferred_element_type=jnp.float32)
        shares = jax.nn.softmax(logits.reshape(batch, -1, heads, tokens), axis=-1)
        return jnp.matmul(shares.astype(x.dtype).reshape(logits.shape), values)

    fitting = max(1, CACHED_LOGITS // (batch * heads * tokens))
    chunk = 2 ** int(math.log2(fitting))  # square images come out without a remainder
    if positions <= chunk:
        return attend_some(x)
    padded = jnp.pad(x, ((0, 0), (0, -positions % chunk), (0, 0)))
    out = lax.map(jax.checkpoint(attend_some), rearrange(padded, "b (k n) c -> k b n c", n=chunk))
    return rearrange(out, "k b n c -> b (k n) c")[:, :positions]


def folding_saves(channels: int, tokens: int, dim_head: int) -> bool:
    """Whether equation (1) needs fewer products than projecting every position, and there is a
    program for the platform that keeps no logits."""
    kept_on_chip = target_platform() in ("cpu", "tpu")
    return kept_on_chip and channels * tokens < dim_head * (channels + tokens)

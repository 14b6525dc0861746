"""Multi-head attention with an additive bias that depends only on the relative grid offset.

    logits[i, j] = scale * <q_i, k_j> + table[position(i) - position(j)]               (1)
    out_i        = sum_j softmax_j(logits[i, :]) v_j                                   (2)

Tokens lie on a (time, height, width) grid in row-major order; the bias comes as a table of its
distinct values (`gct_jax.kernels.bias`). The backends compute the same:

    dense     all logits at once, memory O(queries * keys)
    batched   the same in the order of axes that suits CPUs
    unrolled  the same with a matrix product of its own for each sample and head, for CPUs
    chunked   one frame of queries after the other, memory linear in the number of frames
    cudnn     chunks of frames by cuDNN's flash attention, for GPUs in 16 bits
    flash     a flash kernel for TPUs that reads the bias tile by tile, memory linear
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from gct_jax.array_types import KeyMask, KeyRows, Queries
from gct_jax.errors import ConfigError, InputError
from gct_jax.kernels.bias import RelativeBias, bias_matrix
from gct_jax.kernels.chunked import attend_chunked
from gct_jax.kernels.cudnn import attend_cudnn
from gct_jax.kernels.dense import attend_batched, attend_dense, attend_unrolled, by_head
from gct_jax.kernels.flash import attend_flash, fits_flash, with_tiles
from gct_jax.kernels.reverse_mode import reverse_mode_only
from gct_jax.kernels.target import target_platform

BACKENDS = ("auto", "dense", "batched", "unrolled", "chunked", "cudnn", "flash")
# Above so many logits per head a walk over chunks takes less memory; on a CPU it is the faster way
# as well, forward and backward (with a bias 332 k are faster dense, 692 k in chunks by a factor of
# 2; without, cross attention's 1.7 M are still faster dense, 1.0 M of self attention equally fast).
DENSE_LOGITS_LIMIT = 512 * 1024
CPU_UNBIASED_LOGITS_LIMIT = 2048 * 1024
# XLA's batched products on a CPU run at half the speed of single ones; few and large ones are worth
# a program that is longer by their number.
UNROLLED_PRODUCTS = 16
UNROLLED_LOGITS = 32 * 1024
# Of unrolled products; with 64 attention at 3,264 tokens is a quarter slower, with 256 as fast.
CPU_CHUNK_TOKENS = 128


def attention(
    q: Queries,
    k: KeyRows,
    v: KeyRows,
    *,
    scale: float,
    bias: RelativeBias | None = None,
    null_keys: int = 0,
    key_mask: KeyMask | None = None,
    causal: bool = False,
    backend: str = "auto",
) -> Queries:
    """Softmax attention, equations (1) and (2); the softmax is computed in float32.

    Args:
      q: [batch, queries, heads, dim_head].
      k, v: [batch, null_keys + keys, heads, dim_head].
      scale: factor on the dot products.
      bias: offsets on a grid of exactly `queries` = `keys` tokens, or None.
      null_keys: leading keys that have no bias and are never masked.
      key_mask: [batch, keys] bool, False hides a key; the null keys are not part of it.
      causal: key j is hidden from query i < j.
      backend: one of `BACKENDS`; "auto" chooses by device and size.

    Returns:
      [batch, queries, heads, dim_head] in the dtype of `v`.

    Raises:
      ConfigError: an unknown backend.
      InputError: shapes that contradict the bias grid or the mask.
    """
    queries, keys = q.shape[1], k.shape[1] - null_keys
    if bias is not None and not queries == keys == math.prod(bias.grid):
        raise InputError(f"bias grid {bias.grid} does not fit {queries} queries and {keys} keys")
    if key_mask is not None and key_mask.shape[1] != keys:
        raise InputError(f"key_mask has {key_mask.shape[1]} columns for {keys} keys")
    if backend not in BACKENDS:
        raise ConfigError(f"backend {backend!r} is not one of {', '.join(BACKENDS)}")
    if backend == "auto":
        backend = choose_backend(q, queries * keys, bias)
    masks = null_keys, key_mask, causal
    if backend in OWN_BACKWARD:
        attend_in_parts = OWN_BACKWARD[backend]
        if backend == "chunked" and _worth_unrolling(q):
            attend_in_parts = _attend_chunked_by_head
        with reverse_mode_only(f"attention by backend={backend!r}", 'backend="dense"'):
            return attend_in_parts(q, k, v, scale, bias, *masks)
    matrix = None if bias is None else bias_matrix(bias)
    if backend == "unrolled":
        return attend_unrolled(q, by_head(k), by_head(v), scale, matrix, *masks, 0)
    attend = attend_batched if backend == "batched" else attend_dense
    return attend(q, k, v, scale, matrix, *masks, 0)


# These keep no matrix of weights for the backward pass, whose rule they state themselves.
OWN_BACKWARD: dict[str, Callable[..., jax.Array]] = {
    "chunked": attend_chunked,
    "cudnn": attend_cudnn,
    "flash": attend_flash,
}


def shared_bias(bias: RelativeBias, backend: str = "auto") -> RelativeBias:
    """The bias with all that layers can share of its expansion, where their attention, with this
    `backend`, is one of `attention` over its whole grid."""
    logits = math.prod(bias.grid) ** 2
    chosen = backend == "auto" and logits > _dense_limit(bias) and _flash_suits(bias)
    return with_tiles(bias) if chosen or backend == "flash" else bias


def choose_backend(q: jax.Array, logits: int, bias: RelativeBias | None) -> str:
    """The backend of "auto" for queries [batch, n, heads, dim] and so many logits per head."""
    platform = target_platform()
    if logits > _dense_limit(bias):
        if _flash_suits(bias):
            return "flash"
        if platform == "gpu" and q.dtype in (jnp.bfloat16, jnp.float16):
            return "cudnn"
        return "chunked"
    if platform != "cpu":
        return "dense"
    return "unrolled" if logits >= UNROLLED_LOGITS and _worth_unrolling(q) else "batched"


def _dense_limit(bias: RelativeBias | None) -> int:
    plain_on_cpu = target_platform() == "cpu" and bias is None
    return CPU_UNBIASED_LOGITS_LIMIT if plain_on_cpu else DENSE_LOGITS_LIMIT


def _flash_suits(bias: RelativeBias | None) -> bool:
    return target_platform() == "tpu" and fits_flash(bias)


def _worth_unrolling(q: jax.Array) -> bool:
    """Whether each sample and head may have a matrix product of its own."""
    return q.shape[0] * q.shape[2] <= UNROLLED_PRODUCTS and target_platform() == "cpu"


def _attend_chunked_by_head(q, k, v, scale, bias, null_keys, key_mask, causal):
    """All chunks of one head, then those of the next: the bias of a head, 3 MB for 3,264 tokens,
    then stays in the cache, which saves a tenth of the forward pass."""
    outputs = []
    for head in range(q.shape[2]):
        one = slice(head, head + 1)
        outputs.append(
            attend_chunked(
                q[:, :, one],
                # Taken out of the array here: XLA would leave that in the loop over the chunks.
                by_head(k[:, :, one]),
                by_head(v[:, :, one]),
                scale,
                None if bias is None else RelativeBias(bias.table[one], bias.grid),
                null_keys,
                key_mask,
                causal,
                chunk_tokens=CPU_CHUNK_TOKENS,
                attend=attend_unrolled,
            )
        )
    return jnp.concatenate(outputs, axis=2)

"""Flash attention of cuDNN, which wants its bias written out and its inputs in 16 bits.

The bias is written out for one chunk of query frames at a time (`attend_chunked`).
"""

import functools

import jax
from jax import Array

from gct_jax.array_types import KeyMask, KeyRows, Queries
from gct_jax.kernels.bias import RelativeBias
from gct_jax.kernels.chunked import attend_chunked
from gct_jax.kernels.dense import pad_null_keys, visible_keys

CHUNK_TOKENS = 1024


def attend_cudnn(
    q: Queries,
    k: KeyRows,
    v: KeyRows,
    scale: float,
    bias: RelativeBias | None,
    null_keys: int,
    key_mask: KeyMask | None,
    causal: bool,
    *,
    implementation: str = "cudnn",
) -> Queries:
    """Attention by cuDNN; q, k and v must be bfloat16 or float16, on an NVIDIA GPU.

    Args:
      implementation: of `jax.nn.dot_product_attention`; "xla" is for tests without a GPU.

    Raises:
      RuntimeError, ValueError: from JAX, where cuDNN cannot do it.
    """
    return attend_chunked(
        q,
        k,
        v,
        scale,
        bias,
        null_keys,
        key_mask,
        causal,
        chunk_tokens=CHUNK_TOKENS,
        attend=functools.partial(_attend, implementation=implementation),
    )


def _attend(
    q, k, v, scale, bias, null_keys, key_mask, causal, first_query, *, implementation
) -> Array:
    if bias is not None:
        bias = pad_null_keys(bias, null_keys).astype(q.dtype)[None]
    mask = visible_keys(q.shape[1], k.shape[1], null_keys, key_mask, causal, first_query)
    return jax.nn.dot_product_attention(
        q, k, v, bias, mask, scale=scale, implementation=implementation
    ).astype(v.dtype)

"""Attention that holds all logits of a block of queries at once; arguments as in `attention`."""

import jax
import jax.numpy as jnp
from jax import lax

from gct_jax.array_types import KeyMask, KeyRows, Queries


def attend_dense(
    q: Queries,
    k: KeyRows,
    v: KeyRows,
    scale,
    bias,
    null_keys,
    key_mask: KeyMask | None,
    causal,
    first_query,
) -> Queries:
    """Attention of a block of queries that starts at position `first_query`.

    bias: [heads, queries, keys], or a list of them by head, or None.
    """
    logits = scale * jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    logits = _biased_and_masked(logits, bias, null_keys, key_mask, causal, first_query)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def attend_batched(
    q: Queries,
    k: KeyRows,
    v: KeyRows,
    scale,
    bias,
    null_keys,
    key_mask: KeyMask | None,
    causal,
    first_query,
) -> Queries:
    """As `attend_dense`, with heads before positions throughout and normalised last: from any other
    order XLA's CPU backend makes products that take five times as long. TPUs move more with it."""
    queries, keys, values = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))  # [batch, heads, n, dim]
    logits = scale * jnp.einsum(
        "bhqd,bhkd->bhqk", queries, keys, preferred_element_type=jnp.float32
    )
    logits = _biased_and_masked(logits, bias, null_keys, key_mask, causal, first_query)
    weights, total = unnormalized_softmax(logits)
    out = jnp.einsum(
        "bhqk,bhkd->bhqd", weights.astype(v.dtype), values, preferred_element_type=jnp.float32
    )
    return jnp.swapaxes(out / total, 1, 2).astype(v.dtype)


def _biased_and_masked(logits, bias, null_keys, key_mask, causal, first_query):
    """Logits [batch, heads, queries, null + keys] with the bias, and without hidden keys."""
    if bias is not None:
        logits += pad_null_keys(bias, null_keys)
    queries, keys = logits.shape[2:]
    visible = visible_keys(queries, keys, null_keys, key_mask, causal, first_query)
    if visible is None:
        return logits
    # The lowest finite value: a row without any visible key becomes uniform, not NaN.
    return jnp.where(visible, logits, jnp.finfo(jnp.float32).min)


def unnormalized_softmax(logits):
    """(weights, their sum over the last axis): softmax is their quotient, cheaper to take where
    the weights have been summed up, one division per output instead of one per logit."""
    highest = lax.stop_gradient(logits.max(-1, keepdims=True))
    weights = jnp.exp(logits - highest)
    return weights, weights.sum(-1, keepdims=True)


def pad_null_keys(bias, null_keys):
    """Bias as [heads, queries, null + keys], zero for the null keys."""
    whole = bias if isinstance(bias, jax.Array) else jnp.stack(bias)
    return jnp.pad(whole, ((0, 0), (0, 0), (null_keys, 0)))


def visible_keys(queries, keys, null_keys, key_mask, causal, first_query):
    """Which keys a query sees, bool [batch or 1, 1, queries or 1, null + keys], or None: all."""
    visible = None
    if key_mask is not None:
        visible = jnp.pad(key_mask, ((0, 0), (null_keys, 0)), constant_values=True)
        visible = visible[:, None, None, :]
    if causal:
        position = first_query + jnp.arange(queries)
        past = position[:, None] >= jnp.arange(keys - null_keys)
        past = jnp.pad(past, ((0, 0), (null_keys, 0)), constant_values=True)[None, None]
        visible = past if visible is None else visible & past
    return visible


def by_head(x):
    """[batch, n, heads, dim_head] -> for each sample and head [n, dim_head]."""
    return [[sample[:, head] for head in range(x.shape[2])] for sample in x]


def attend_unrolled(
    q: Queries,
    k,
    v,
    scale,
    bias,
    null_keys,
    key_mask: KeyMask | None,
    causal,
    first_query,
) -> Queries:
    """As `attend_dense`, but a matrix product for each sample and head. `k` and `v` as `by_head`
    makes them."""
    batch, queries, heads, _ = q.shape
    visible = visible_keys(queries, len(k[0][0]), null_keys, key_mask, causal, first_query)

    def one(sample, head):
        logits = scale * jnp.dot(
            q[sample, :, head], k[sample][head].T, preferred_element_type=jnp.float32
        )
        if bias is not None:
            logits += jnp.pad(bias[head], ((0, 0), (null_keys, 0)))
        if visible is not None:
            seen = visible[sample % visible.shape[0], 0]
            logits = jnp.where(seen, logits, jnp.finfo(jnp.float32).min)
        weights, total = unnormalized_softmax(logits)  # [queries, null + keys]
        values = v[sample][head]
        out = jnp.dot(weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
        return (out / total).astype(values.dtype)

    rows = [jnp.stack([one(b, h) for h in range(heads)], axis=1) for b in range(batch)]
    return jnp.stack(rows)

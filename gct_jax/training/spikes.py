"""Loss spikes: updates that a bad batch would spoil are skipped and counted.

With g_i the norm of the gradient at step i and m the mean of log g over the accepted steps so far,

    m <- m + max(1 - decay, 1 / n) (log g_i - m),   n accepted steps, this one included         (1)
    skip i   if   n > LEARNT  and  log g_i > m + log(factor)                                  (2)

A skipped step leaves the whole state but the step count as it was. A change that lasts, as when a
discriminator sets in, is not a spike: after `IN_A_ROW` skipped steps the next one is accepted and m
is learnt anew. What is not finite is no spike either; it stops the run.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

DECAY = 0.99
LEARNT = 50  # accepted steps before the rule is used
IN_A_ROW = 5

Record = dict[str, jax.Array]


def new_record() -> Record:
    """Nothing seen yet. Scalars: "mean" float32 is m, "accepted", "skipped" and "in_a_row" int32
    count steps."""
    names = ("accepted", "skipped", "in_a_row")
    return {"mean": jnp.float32(0)} | {name: jnp.int32(0) for name in names}


def judge(record: Record, norm: jax.Array, factor: float) -> tuple[jax.Array, Record]:
    """Equations (1) and (2): whether a step with this gradient norm is accepted, bool scalar, and
    the record with it; factor 0 accepts every step."""
    log_norm = jnp.log(jnp.maximum(norm, jnp.finfo(jnp.float32).tiny))
    far = log_norm > record["mean"] + jnp.log(factor if factor else jnp.inf)
    lasting = record["in_a_row"] >= IN_A_ROW
    skipped = far & (record["accepted"] > LEARNT) & ~lasting
    accepted = jnp.where(lasting, 0, record["accepted"]) + 1
    weight = jnp.maximum(1 - DECAY, 1 / accepted)
    mean = record["mean"] + weight * (log_norm - record["mean"])
    after = {
        "mean": jnp.where(skipped, record["mean"], mean),
        "accepted": jnp.where(skipped, record["accepted"], accepted),
        "skipped": record["skipped"] + skipped,
        "in_a_row": jnp.where(skipped, record["in_a_row"] + 1, 0),
    }
    return ~skipped, after


def guarded(before: PyTree, after: PyTree, norm: jax.Array, factor: float) -> Any:
    """The train state after a step, or, if the step is skipped, the one before it with the step
    counted in `spikes`."""
    accepted, record = judge(before.spikes, norm, factor)
    kept = jax.tree.map(lambda old, new: jnp.where(accepted, new, old), before, after)
    return kept.replace(spikes=record)

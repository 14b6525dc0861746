"""Layers that are computed again in the backward pass, so that only their inputs are kept.

Of a stack of L layers this keeps L inputs and what one layer keeps, instead of what L layers keep,
for one more forward pass (Chen et al. 2016, "Training deep nets with sublinear memory cost").

`jax.checkpoint` says the same with optimisation barriers, which XLA drops on a CPU before it merges
equal computations: there the second pass would become the first one again, kept in full. Here the
second pass depends on the incoming gradient, by value, on every device.
"""

from typing import Any

import flax.linen as nn
import jax

from gct_jax.kernels.reverse_mode import reverse_mode_only
from gct_jax.kernels.scheduling import after


def rematerialized(layer: nn.Module, x: jax.Array, *others: Any) -> jax.Array:
    """`layer(x, *others)`, of which the backward pass keeps only the arguments.

    Args:
      layer: a bound module without mutable state or random numbers, called during `apply`.
      x: what everything large in the layer depends on.
      others: further arguments, trees of arrays.
    """
    unbound, variables = layer.unbind()

    @jax.custom_vjp
    def call(*given: Any) -> jax.Array:
        out: Any = unbound.apply(*given)
        return out

    def forward(*given: Any) -> tuple[jax.Array, tuple]:
        return call(*given), given

    def backward(given: tuple, gradient: jax.Array) -> tuple:
        variables, x, *others = given
        _, pull_back = jax.vjp(unbound.apply, variables, after(x, gradient), *others)
        return pull_back(gradient)

    call.defvjp(forward, backward)
    with reverse_mode_only("remat=True", "remat=False"):
        return call(variables, x, *others)

"""Floating-point operations of a JAX program, counted in its trace before any compiler sees it.

Only matrix products and convolutions count, two operations per multiply-add, as is usual for model
FLOP utilisation. A compiler's own figure will not do: it counts the body of a loop once.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.extend import core

from gct_jax.kernels.bilinear import expansion


class Flops(NamedTuple):
    """Operations in matrix products and in convolutions."""

    matmul: float = 0.0
    convolution: float = 0.0

    def plus(self, other: "Flops", times: float = 1) -> "Flops":
        """This and `times` the other."""
        return Flops(
            self.matmul + times * other.matmul, self.convolution + times * other.convolution
        )

    @property
    def total(self) -> float:
        """Both kinds."""
        return self.matmul + self.convolution


def count_flops(function: Callable, *arguments: Any) -> Flops:
    """Operations of one call; arguments may be abstract. A `while` loop counts as one turn."""
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: core.Jaxpr) -> Flops:
    total = Flops()
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            total = total.plus(Flops(matmul=_dot(equation)))
        elif name == "conv_general_dilated":
            total = total.plus(Flops(convolution=_convolution(equation)))
        else:
            inner = [_count(body) for body in _bodies(equation)]
            if name == "cond":
                inner = [max(inner, key=lambda flops: flops.total)]
            turns = equation.params["length"] if name == "scan" else 1
            for flops in inner:
                total = total.plus(flops, turns)
    return total


def _bodies(equation: Any) -> Iterator[core.Jaxpr]:
    function = expansion(equation.primitive)
    if function is not None:
        operands = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in equation.invars]
        yield jax.make_jaxpr(functools.partial(function, **equation.params))(*operands).jaxpr
        return
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


def _dot(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def _convolution(equation: Any) -> float:
    """Each output sums a kernel's positions and the input channels of its group. Zeros that a
    strided convolution's gradient puts into its input are not work."""
    numbers = equation.params["dimension_numbers"]
    kernel = equation.invars[1].aval.shape
    summed = math.prod(kernel[i] for i in numbers.rhs_spec[1:])
    spread = math.prod(equation.params["lhs_dilation"]) * math.prod(equation.params["rhs_dilation"])
    grouped = equation.params["batch_group_count"]
    return 2 * math.prod(equation.outvars[0].aval.shape) * summed / (spread if grouped == 1 else 1)

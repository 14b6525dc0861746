"""Bilinear maps with hand-written adjoints that stay open to every transformation of JAX.

A map y = f(x, w), linear in each argument, has two adjoints, which are bilinear too:

    <f(x, w), g> = <x, of_x(g, w)> = <w, of_w(x, g)>                                     (1)

So the derivative of each of the three is made of the others:

    df(x, w) = f(dx, w) + f(x, dw),   and the same for of_x and of_w                     (2)

`jax.custom_vjp` would state the adjoints alone and thereby forbid forward mode. With (2) as rules
of primitives `jvp`, `grad`, `vmap` and any nesting of them work, and the gradients of a program are
still computed by the hand-written adjoints.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Function = Callable[..., jax.Array]

_functions: dict[Primitive, Function] = {}


def expansion(primitive: Primitive) -> Function | None:
    """What a primitive of `bilinear` computes, a function of its operands and parameters, for tools
    that read jaxprs; None for any other primitive."""
    return _functions.get(primitive)


def bilinear(name: str, f: Function, of_x: Function, of_w: Function) -> Function:
    """f as a function (x, w, **static) with the adjoints of equation (1).

    Args:
      name: shown in jaxprs.
      f: called as f(x, w, **static).
      of_x: called as of_x(g, w, **static); returns an array like x.
      of_w: called as of_w(x, g, **static); returns an array like w.

    Returns:
      A function of two arrays and hashable keyword arguments.
    """
    y, x, w = (
        _primitive(f"{name}{role}", function)
        for role, function in (("", f), ("_of_x", of_x), ("_of_w", of_w))
    )
    # Each rule gets the cotangent, and of the two arguments the one that it is not linear in.
    ad.defbilinear(
        y,
        lambda g, _, w_, **static: x.bind(g, w_, **static),
        lambda g, x_, _, **static: w.bind(x_, g, **static),
    )
    ad.defbilinear(
        x,
        lambda c, _, w_, **static: y.bind(c, w_, **static),
        lambda c, g_, _, **static: w.bind(c, g_, **static),
    )
    ad.defbilinear(
        w,
        lambda c, _, g_, **static: x.bind(g_, c, **static),
        lambda c, x_, _, **static: y.bind(x_, c, **static),
    )
    return y.bind


def _primitive(name: str, function: Function) -> Primitive:
    primitive = Primitive(name)
    _functions[primitive] = function

    def abstract(*arguments: Any, **static: Any) -> ShapedArray:
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arguments]
        out = jax.eval_shape(functools.partial(function, **static), *shapes)
        return ShapedArray(out.shape, out.dtype)

    def batched(arguments: Any, axes: Any, **static: Any) -> tuple[jax.Array, int]:
        # Traced here, so derivatives of the batched map are those of its own operations.
        mapped = jax.vmap(functools.partial(function, **static), in_axes=tuple(axes))
        return mapped(*arguments), 0

    @functools.cache
    def compiled(static: tuple) -> Function:
        return jax.jit(functools.partial(function, **dict(static)))

    primitive.def_impl(lambda *args, **static: compiled(tuple(static.items()))(*args))
    primitive.def_abstract_eval(abstract)
    batching.primitive_batchers[primitive] = batched
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))
    return primitive

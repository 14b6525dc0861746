"""When a program computes something and in which portions: XLA's CPU backend leaves both to us."""

import jax


def after(value: jax.Array, earlier: jax.Array) -> jax.Array:
    """`value`, as far as `earlier` is finite, but not before `earlier` is known.

    By value, because XLA drops optimisation barriers on a CPU.
    """
    one = earlier[(0,) * earlier.ndim]
    return value + (0 * one).astype(value.dtype)  # not folded: it would be NaN if that element were


def largest_divisor(number: int, at_most: int) -> int:
    """The largest divisor of `number` up to `at_most`, at least 1: as many rows at a time."""
    return next(n for n in range(max(1, min(number, at_most)), 0, -1) if number % n == 0)

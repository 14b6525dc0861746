"""jit for tests, where compiling takes far longer than the tiny arrays do."""

import functools

import jax

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

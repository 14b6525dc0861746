"""Running a Pallas kernel on a TPU: references by name, stated cost, the interpreter elsewhere.

A kernel is opaque to XLA's partitioner. Under a mesh each device runs it on its own samples.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

from gct_jax.sharding import BATCH, splits_evenly

VMEM_LIMIT_BYTES = 96 * 2**20

TN = (((0,), (0,)), ((), ()))  # contract the rows of both factors
NN = (((1,), (0,)), ((), ()))
NT = (((1,), (1,)), ((), ()))


def dot(a: Array, b: Array, contraction: Any) -> Array:
    """Product of two matrices within a kernel, summed in float32."""
    exact = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot_general(a, b, contraction, precision=exact, preferred_element_type=jnp.float32)


def is_alone() -> bool:
    """Whether there is no mesh, or one of a single device."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or math.prod(mesh.axis_sizes) == 1


def on_own_samples(function: Callable[..., Array], *arrays: Array, whole: int = 0) -> Array:
    """function(*arrays) on each device of the current mesh for its own samples, the first axis of
    the arrays but the last `whole`, which every device has all of."""
    if is_alone():
        return function(*arrays)
    rows = BATCH if splits_evenly(arrays[0].shape[0]) else P()
    specs = (*[rows] * (len(arrays) - whole), *[P()] * whole)
    # The interpreter of the kernels does not track which axes a value varies over.
    return jax.shard_map(function, in_specs=specs, out_specs=rows, check_vma=False)(*arrays)


def run_kernel(
    kernel: Callable[[dict[str, Any]], None],
    grid: tuple[int, ...],
    inputs: Mapping[str, tuple[Array, pl.BlockSpec]],
    outputs: Mapping[str, tuple[jax.ShapeDtypeStruct, pl.BlockSpec]],
    *,
    sequential: int,
    work: tuple[int, int],
    read_again_bytes: int = 0,
    scratch: Mapping[str, tuple[int, int]] | None = None,
) -> list[Array]:
    """Run a kernel that takes its references by name, and return its outputs.

    Outside a TPU it runs in Pallas' interpreter, which is for tests.

    Args:
      sequential: so many last axes of the grid must run in order on one core.
      work: floating point operations and transcendental ones, for the compiler's scheduler.
      read_again_bytes: of inputs beyond the once that each array is counted for.
      scratch: float32 arrays of on-chip memory by name.
    """
    scratch = scratch or {}
    names = [*inputs, *outputs, *scratch]
    # An array that several references see counts once.
    arrays: dict[int, Any] = {id(array): array for array, _ in inputs.values()}
    arrays |= {id(shape): shape for shape, _ in outputs.values()}
    cost = pl.CostEstimate(
        flops=work[0],
        transcendentals=work[1],
        bytes_accessed=sum(array.size * array.dtype.itemsize for array in arrays.values())
        + read_again_bytes,
    )

    def run(interpret: bool, *arrays: Array) -> list[Array]:
        call = pl.pallas_call(
            lambda *refs: kernel(dict(zip(names, refs, strict=True))),
            grid=grid,
            in_specs=[spec for _, spec in inputs.values()],
            out_specs=[spec for _, spec in outputs.values()],
            out_shape=[shape for shape, _ in outputs.values()],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch.values()],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=[
                    pltpu.PARALLEL if axis < len(grid) - sequential else pltpu.ARBITRARY
                    for axis in range(len(grid))
                ],
                vmem_limit_bytes=VMEM_LIMIT_BYTES,
            ),
            cost_estimate=cost,
            interpret=interpret,
        )
        return list(call(*arrays))

    return lax.platform_dependent(
        *(array for array, _ in inputs.values()),
        tpu=functools.partial(run, False),
        default=functools.partial(run, True),
    )

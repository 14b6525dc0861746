"""How arrays are laid over devices: one mesh, one table.

The mesh has three axes. A (2, 2, 2) mesh of eight devices, drawn for one fixed tensor index:

                 fsdp 0          fsdp 1
      data 0   d000, d001      d010, d011         batches are split over data x fsdp,
      data 1   d100, d101      d110, d111         parameters over fsdp and tensor

"data" replicas hold the same parameters; "fsdp" splits each parameter once more to save memory;
"tensor" splits heads and hidden units, so that a layer's matrix products are shared.
"""

import math
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gct_jax.errors import ConfigError

AXES = ("data", "fsdp", "tensor")
BATCH = P(("data", "fsdp"))

# Path pattern -> layout of a parameter, the first match counts. The same patterns find a
# parameter's Adam moments and average, whose paths end alike.
PARAMETER_RULES: tuple[tuple[str, P], ...] = ((r".*", P()),)


def make_mesh(shape: tuple[int, ...], devices: list[jax.Device] | None = None) -> Mesh:
    """Mesh over ("data", "fsdp", "tensor"); one entry of `shape` may be -1.

    Raises:
      ConfigError: the shape does not fit the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    known = math.prod(size for size in shape if size != -1)
    resolved = tuple(len(devices) // known if size == -1 else size for size in shape)
    if len(shape) != len(AXES) or math.prod(resolved) != len(devices):
        raise ConfigError(
            f"loop.mesh = {tuple(shape)} (data, fsdp, tensor) does not fit {len(devices)} devices"
        )
    return jax.make_mesh(resolved, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def parameter_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """Layout of the array at `path`. Scalars are replicated, and so is a dimension that its mesh
    axis does not divide.

    Raises:
      ConfigError: no pattern matches the path, or the pattern is for another rank.
    """
    if math.prod(shape) == 1:
        return P()
    for pattern, spec in PARAMETER_RULES:
        if re.search(pattern, path):
            if len(spec) > len(shape):
                raise ConfigError(f"sharding rule {pattern} has more axes than {path} {shape}")
            axes = [
                axis if axis is not None and size % mesh.shape[axis] == 0 else None
                for axis, size in zip(spec, shape, strict=False)
            ]
            return P(*axes)
    raise ConfigError(f"no sharding rule matches parameter {path} of shape {shape}")


def state_shardings(abstract: Any, mesh: Mesh) -> Any:
    """NamedSharding of every leaf of a (abstract) train state or parameter tree."""

    def place(path: tuple, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return NamedSharding(mesh, P())
        return NamedSharding(mesh, parameter_spec(name, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(place, abstract)


def shard_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays from this process's part of a batch, split over ("data", "fsdp")."""
    sharding = NamedSharding(mesh, BATCH)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }

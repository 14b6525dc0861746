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
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from gct_jax.errors import ConfigError

AXES = ("data", "fsdp", "tensor")
BATCH = P(("data", "fsdp"))
REPLICA_ROWS = P("data")  # a replica's rows, whole on each of its devices
REPLICA_FEATURES = P("data", ("fsdp", "tensor"))  # the same rows, their features split

REPLICATED = P()
COLUMNS = P("fsdp", "tensor")  # [in, out]: each tensor shard computes a part of the outputs
ROWS = P("tensor", "fsdp")  # [in, out]: each tensor shard sums over a part of the inputs
CONVOLUTION = P(None, None, "fsdp", "tensor")  # [height, width, in, out]

# Path pattern -> layout of a parameter; the first match of the parameter's rank counts, P() is for
# any rank. A parameter's Adam moments and average have paths that end alike and so follow it.
PARAMETER_RULES: tuple[tuple[str, P], ...] = (
    # small: norms, biases, learned vectors, ends of the position MLPs, depthwise kernels, codebook
    (r"(scale|bias|frequencies)$", REPLICATED),
    (r"(null_key|null_value|null/key_value|null_tokens|null_vector)$", REPLICATED),
    (r"(pool/latents|pool/positions|relpos_bias/rel_embedding)$", REPLICATED),
    (r"(position_bias|spatial_bias)/(hidden_0|out)/kernel$", REPLICATED),
    (r"(peg|to_score|context_gate/position|\w+_local)/kernel$", REPLICATED),
    (r"codebook/(embedding|cluster_size)$", REPLICATED),
    (r"reader/(classifiers|queries)$", REPLICATED),
    (r"/ns_coeffs$", REPLICATED),  # Muon's polynomial
    # transformers: heads and hidden units over "tensor", back to the residual stream
    (r"(query|key|value|gate|wide|wi_\d)/kernel$", COLUMNS),
    (r"/(out|wo)/kernel$", ROWS),
    (r"token_embedder/embedding$", ROWS),
    # MaskGIT's have one row more than there are codes, or as many as there may be positions
    (r"(token/embedding|embedding/position)$", P(None, ("fsdp", "tensor"))),
    # CT-ViT's patches, MaskGIT's vocabulary
    (r"(linear|pixels|first_pixels|to_logits)/kernel$", COLUMNS),
    # wide layers of the perceptual network, to whose parts the rows go
    (r"vgg16/dense_0/kernel$", P(None, ("fsdp", "tensor"))),
    (r"vgg16/dense_1/kernel$", P(("fsdp", "tensor"), None)),
    (r"(logit|dense_\d)/kernel$", COLUMNS),
    # hidden layers of the position MLPs and of the U-Net's conditioning, 1x1 convolutions
    (r"(hidden|hidden_\d|tokens|vector|vector_hidden|text|mean_latents|time)/kernel$", COLUMNS),
    (r"(residual|conv|conv1)/kernel$", COLUMNS),
    # convolutions of U-Net, discriminator and perceptual network
    (r"initial_conv/kernel(_\d+)?$", P(None, None, None, "tensor")),
    (r"(conv\w*|final_conv|downsample|residual)/kernel$", CONVOLUTION),
    (r"down_\d+_resize/kernel(_\d+)?$", CONVOLUTION),
)


def make_mesh(shape: tuple[int, ...], devices: list[jax.Device] | None = None) -> Mesh:
    """Mesh over ("data", "fsdp", "tensor"); one entry of `shape` may be -1. A single process may
    use fewer devices than there are, the first ones.

    Raises:
      ConfigError: the shape does not fit the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    known = math.prod(size for size in shape if size != -1)
    resolved = tuple(len(devices) // known if size == -1 else size for size in shape)
    used = math.prod(resolved)
    whole = jax.process_count() > 1 or -1 in shape
    if len(shape) != len(AXES) or not 0 < used <= len(devices) or (whole and used < len(devices)):
        raise ConfigError(
            f"loop.mesh = {tuple(shape)} (data, fsdp, tensor) does not fit {len(devices)} devices; "
            "its product must be that number, or -1 stand for the rest"
        )
    axis_types = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(resolved, AXES, axis_types=axis_types, devices=devices[:used])


def parameter_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """Layout of the array at `path`. Scalars are replicated, and so is a dimension that its mesh
    axis does not divide.

    Raises:
      ConfigError: no pattern matches.
    """
    if math.prod(shape) == 1:
        return P()
    for pattern, spec in PARAMETER_RULES:
        if len(spec) in (0, len(shape)) and re.search(pattern, path):
            axes = [
                axis if axis is not None and size % _chips(axis, mesh) == 0 else None
                for axis, size in zip(spec, shape, strict=False)
            ]
            return P(*axes)
    raise ConfigError(f"no sharding rule matches parameter {path} of shape {shape}")


def _chips(axis: str | tuple[str, ...], mesh: Mesh) -> int:
    return math.prod(mesh.shape[name] for name in ((axis,) if isinstance(axis, str) else axis))


def state_shardings(abstract: PyTree, mesh: Mesh) -> PyTree:
    """NamedSharding of every leaf of a (abstract) train state or parameter tree."""

    def place(path: tuple, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return NamedSharding(mesh, P())
        return NamedSharding(mesh, parameter_spec(name, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(place, abstract)


def constrain_batch(x: jax.Array, spec: P = BATCH) -> jax.Array:
    """`x` [batch, ...] held to `BATCH`, or another layout of a batch of this module, within a mesh,
    so that activations stay with their samples.

    Networks call it between their layers. Left to itself XLA's partitioner splits activations along
    other axes too, which costs transfers and, on meshes with all three axes, gave wrong gradients
    (jax 0.10.2: that of `a` in `x @ a @ b`, both laid out as `COLUMNS`, with samples exchanged).
    Without a mesh, or with one that has other axes, `x` is returned as it is.
    """
    return jax.lax.with_sharding_constraint(x, spec) if splits_evenly(x.shape[0]) else x


def splits_evenly(rows: int) -> bool:
    """Whether this is traced within a mesh that splits as many rows over ("data", "fsdp")."""
    mesh = jax.sharding.get_abstract_mesh()
    if not set(BATCH[0]) <= set(mesh.auto_axes):
        return False
    return rows % math.prod(mesh.shape[axis] for axis in BATCH[0]) == 0


def batch_sharding(mesh: Mesh, rows: int) -> NamedSharding:
    """How a global batch of `rows` rows lies: split over ("data", "fsdp"), or whole on every device
    if it cannot be split evenly, as the last batch of an evaluation."""
    shares = math.prod(mesh.shape[axis] for axis in BATCH[0])
    return NamedSharding(mesh, BATCH if rows % shares == 0 else REPLICATED)


def process_rows(mesh: Mesh, rows: int) -> list[int]:
    """Numbers of the rows of a global batch that the devices of this process hold, in order.

    Several processes may hold the same rows, as where a "tensor" axis crosses hosts.
    """
    index_map = batch_sharding(mesh, rows).addressable_devices_indices_map((rows,))
    parts = {index[0].indices(rows) for index in index_map.values() if index is not None}
    return sorted({row for part in parts for row in range(*part)})


def shard_batch(batch: dict[str, np.ndarray], mesh: Mesh, rows: int) -> dict[str, jax.Array]:
    """Global arrays [rows, ...] from this process's part of a batch.

    Args:
      batch: arrays whose row i is row `process_rows(mesh, rows)[i]` of the global batch.
    """
    sharding, own = batch_sharding(mesh, rows), process_rows(mesh, rows)
    place = {row: i for i, row in enumerate(own)}

    def put(name: str, array: np.ndarray) -> jax.Array:
        if len(array) != len(own):
            raise ValueError(f"{name} has {len(array)} rows, this process holds {len(own)}")

        def part(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(rows)
            taken = array[place[start] : place[stop - 1] + 1]
            return np.asarray(taken[(slice(None), *index[1:])])

        return global_array((rows, *array.shape[1:]), sharding, part)

    return {name: put(name, array) for name, array in batch.items()}


def global_array(
    shape: tuple[int, ...],
    sharding: NamedSharding,
    part: Callable[[tuple[slice, ...]], np.ndarray],
) -> jax.Array:
    """The array of a shape of which this process holds `part(index)` wherever the sharding says so.

    Unlike `jax.make_array_from_callback` it counts as an explicit transfer.
    """
    places = sharding.addressable_devices_indices_map(shape)
    parts = [part(index) for index in places.values() if index is not None]
    placed = jax.device_put(parts, list(places))
    return jax.make_array_from_single_device_arrays(shape, sharding, placed)

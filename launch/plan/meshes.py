"""Which meshes of a topology are worth compiling, by arithmetic alone.

With P the bytes of the trained parameters in float32, c the share that they take in the type of the
computation, (d, f, t) the mesh and A the bytes of the rows of a chip in all maps that a tensor axis
has to sum, each chip receives in a step about

    parameters   2 c P / t (f - 1) / f      gathered forward and back                            (1)
    gradients    P / t (f - 1) / f  +  2 P / (f t) (d - 1) / d                                   (2)
    activations  4 A (t - 1) / t            summed forward and back                              (3)

(Shoeybi et al. 2019; Rajbhandari et al. 2020.) Meshes are ranked by the sum; those come first whose
state leaves half of a chip's memory to the activations.
"""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from gct_jax.chips import Chip
from gct_jax.sampling.cascade import model_token_grid
from gct_jax.sharding import make_mesh, state_shardings
from gct_jax.training.config import TrainConfig
from gct_jax.training.state import TrainState

STATE_SHARE = 0.5  # of a chip's memory
ITEM_BYTES = {"float32": 4, "bfloat16": 2}
SUMMED = re.compile(r"/(out|wo|conv\w*)/kernel$")  # their outputs, where inputs are split


class Candidate(NamedTuple):
    """A mesh (data, fsdp, tensor): bytes of the state on a chip, and those that it receives by
    equations (1) to (3)."""

    shape: tuple[int, int, int]
    state_bytes: float
    received_bytes: float


def ranked(config: TrainConfig, state: TrainState, devices: list, chip: Chip) -> list[Candidate]:
    """Every mesh that splits the rows of a batch evenly, the best first.

    Args:
      state: of the stage, abstract.
    """
    found = [
        candidate(config, state, make_mesh(shape, devices))
        for shape in mesh_shapes(len(devices))
        if config.loop.batch_size % (shape[0] * shape[1] * config.loop.micro_batches) == 0
    ]
    room = STATE_SHARE * chip.memory_bytes
    return sorted(found, key=lambda one: (one.state_bytes > room, one.received_bytes, one.shape))


def mesh_shapes(chips: int) -> Iterator[tuple[int, int, int]]:
    """All (data, fsdp, tensor) of so many chips."""
    for data in range(1, chips + 1):
        for fsdp in range(1, chips // data + 1):
            if chips % (data * fsdp) == 0:
                yield data, fsdp, chips // (data * fsdp)


def candidate(config: TrainConfig, state: TrainState, mesh: Mesh) -> Candidate:
    """What equations (1) to (3) say of a mesh."""
    data, fsdp, tensor = (mesh.shape[axis] for axis in ("data", "fsdp", "tensor"))
    placed = jax.tree.map(
        lambda leaf, sharding: _bytes(sharding.shard_shape(leaf.shape), leaf),
        state,
        state_shardings(state, mesh),
    )
    parameters = sum(_bytes(leaf.shape, leaf) for leaf in jax.tree.leaves(state.params))
    size = ITEM_BYTES[config.dtype]
    received = 2 * size / 4 * parameters / tensor * (fsdp - 1) / fsdp
    received += parameters / tensor * (fsdp - 1) / fsdp
    received += 2 * parameters / (fsdp * tensor) * (data - 1) / data
    rows = config.loop.batch_size / (data * fsdp)
    received += 4 * rows * size * _summed(config, state) * (tensor - 1) / tensor
    return Candidate((data, fsdp, tensor), sum(jax.tree.leaves(placed)), received)


def _summed(config: TrainConfig, state: TrainState) -> float:
    """Numbers of one row in the outputs of layers whose inputs a tensor axis splits."""
    if config.stage == "superres":
        assert config.model.diffusion
        positions = config.model.diffusion.image_size**2 / 4  # of most of the U-Net's layers
    elif config.stage == "t5":
        assert config.model.t5
        positions = config.model.t5.max_length
    else:
        positions = math.prod(model_token_grid(config.model, config.model.volume.slices))
    return sum(
        positions * leaf.shape[-1]
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
        if SUMMED.search(jax.tree_util.keystr(path, simple=True, separator="/"))
    )


def _bytes(shape: tuple[int, ...], leaf: Any) -> float:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return 8.0
    return float(math.prod(shape) * leaf.dtype.itemsize)

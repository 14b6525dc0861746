"""The one state that every stage trains and that a checkpoint holds."""

import jax
from flax import struct
from jaxtyping import PyTree

from gct_jax.training.spikes import Record, new_record

TREES = ("params", "ema", "opt_state", "extra")  # of a state: component -> its arrays


class TrainState(struct.PyTreeNode):
    """Everything a resumed run needs.

    Attributes:
      step: int32 scalar, updates done. The data order is a function of (seed, step), so this is
        the data position as well.
      key: typed PRNG key of the run; step i draws from `fold_in(key, i)`.
      params: trained networks, name -> 'params' tree, float32.
      ema: averaged copy of the networks that ship.
      opt_state: one optax state per trained network or group.
      extra: arrays without a gradient: CT-ViT's codebook, frozen text encoder.
      spikes: the gradient norms so far, see `gct_jax.training.spikes`.
    """

    step: jax.Array
    key: jax.Array
    params: dict[str, PyTree]
    ema: dict[str, PyTree]
    opt_state: dict[str, PyTree]
    extra: dict[str, PyTree]
    spikes: Record = struct.field(default_factory=new_record)

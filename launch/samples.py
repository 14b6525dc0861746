"""Sample images during training, one function per stage."""

from collections.abc import Callable

import jax
import numpy as np

from gct_jax.parts import build_part
from gct_jax.training.config import TrainConfig
from gct_jax.training.stages import Parts
from gct_jax.training.state import TrainState
from gct_jax.volumes.intensity import WINDOWS_HU, from_unit, window_to_uint8
from launch.data import PhantomData

Images = dict[str, np.ndarray]
ROWS = 4


def sample_function(
    config: TrainConfig, parts: Parts, data: PhantomData
) -> Callable[[TrainState], Images]:
    """The stage's function state -> uint8 images by name, drawn from the first held-out batch."""
    return SAMPLERS[config.stage](config, parts, data.held_out[0])


def volume_rows(*volumes: np.ndarray) -> Images:
    """Middle axial and coronal slices of volumes [b, d, h, w, 1], one row per case, the volumes
    side by side, for each window of WINDOWS_HU."""
    images = {}
    for window, limits in WINDOWS_HU.items():
        rows = []
        for case in range(min(ROWS, len(volumes[0]))):
            views = []
            for volume in volumes:
                hu = from_unit(np.asarray(volume[case, ..., 0], np.float32))
                depth, height = hu.shape[:2]
                coronal = np.repeat(hu[::-1, height // 2], -(-height // depth), axis=0)[:height]
                views += [hu[depth // 2], np.pad(coronal, ((0, height - len(coronal)), (0, 0)))]
            rows.append(np.concatenate(views, axis=1))
        images[window] = window_to_uint8(np.concatenate(rows), limits)
    return images


def _ctvit_samples(config: TrainConfig, parts: Parts, batch: dict) -> Callable:
    """Original (left) and reconstruction."""
    volume = batch["volume"][:ROWS]
    network = build_part(config.model, "ctvit")

    @jax.jit
    def rebuild(params, codebook):
        variables = {"params": params, "codebook": {"quantizer": codebook}}
        return network.apply(variables, volume).reconstruction

    return lambda state: volume_rows(
        volume, jax.device_get(rebuild(state.ema["ctvit"], state.extra["codebook"]))
    )


SAMPLERS = {"ctvit": _ctvit_samples}

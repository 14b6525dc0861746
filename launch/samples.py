"""Sample images during training, one function per stage."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gct_jax.components import build_component
from gct_jax.random_keys import random_key
from gct_jax.sampling.cascade import embed_text
from gct_jax.sampling.guidance import with_guidance
from gct_jax.sampling.settings import superres_settings
from gct_jax.sampling.superres import super_resolve_slices
from gct_jax.sampling.token_decoding import DecodingPlan, decode_tokens
from gct_jax.training.config import TrainConfig
from gct_jax.training.maskgit import embedded_text
from gct_jax.training.stages import Components
from gct_jax.training.state import TrainState
from gct_jax.volumes.intensity import WINDOWS_HU, from_unit, window_to_uint8
from launch.data import StageData

Images = dict[str, np.ndarray]
ROWS = 4


def sample_function(
    config: TrainConfig, components: Components, data: StageData
) -> Callable[[TrainState], Images]:
    """The stage's function state -> uint8 images by name, for the first held-out cases."""
    batch = {name: array[:ROWS] for name, array in data.held_out[0].items()}
    return SAMPLERS[config.stage](config, components, batch)


def volume_rows(*volumes: np.ndarray) -> Images:
    """Middle axial and coronal slices of volumes [b, d, h, w, 1], one row per case, the volumes
    side by side, for each window of WINDOWS_HU."""
    images = {}
    for window, limits in WINDOWS_HU.items():
        rows = []
        for case in range(len(volumes[0])):
            views = []
            for volume in volumes:
                hu = from_unit(np.asarray(volume[case, ..., 0]))
                depth, height = hu.shape[:2]
                coronal = np.repeat(hu[::-1, height // 2], -(-height // depth), axis=0)[:height]
                views += [hu[depth // 2], coronal]
            rows.append(np.concatenate(views, axis=1))
        images[window] = window_to_uint8(np.concatenate(rows), limits)
    return images


def _ctvit_samples(config: TrainConfig, components: Components, batch: dict) -> Callable:
    """Original (left) and reconstruction."""
    network: Any = build_component(config.model, "ctvit")

    @jax.jit
    def rebuild(params, codebook):
        variables = {"params": params, "codebook": {"quantizer": codebook}}
        return network.apply(variables, batch["volume"]).reconstruction

    def draw(state: TrainState) -> Images:
        rebuilt = rebuild(state.ema["ctvit"], state.extra["codebook"])
        return volume_rows(batch["volume"], jax.device_get(rebuilt))

    return draw


def _maskgit_samples(config: TrainConfig, components: Components, batch: dict) -> Callable:
    """What CT-ViT makes of the true tokens (left) and of tokens sampled from the report."""
    ctvit: Any = build_component(config.model, "ctvit")
    network: Any = build_component(config.model, "maskgit")
    sampling = config.model.sampling
    plan = DecodingPlan(
        grid=batch["token_ids"].shape[1:],
        mask_id=network.num_tokens,
        steps=sampling.steps,
        temperature=sampling.temperature,
    )

    @jax.jit
    def paint(variables, ids):
        return ctvit.apply(variables, ids, method="decode")

    @jax.jit
    def sample(maskgit, text, text_mask):
        def apply(*inputs):
            return network.apply({"params": maskgit}, *inputs)

        logits_fn = with_guidance(apply, text, text_mask, sampling.guidance)
        return decode_tokens(logits_fn, jax.random.split(random_key(0), len(text)), plan)

    def draw(state: TrainState) -> Images:
        networks = {**state.extra, **state.ema}
        text, text_mask = embedded_text(state.ema, state.extra, config, batch)
        ids = sample(networks["maskgit"], text, text_mask)
        variables = components.variables["ctvit"]
        return volume_rows(*(np.asarray(paint(variables, i)) for i in (batch["token_ids"], ids)))

    return draw


def _superres_samples(config: TrainConfig, components: Components, batch: dict) -> Callable:
    """Low resolution (left), super-resolved, true slice."""
    unet: Any = build_component(config.model, "superres")
    settings = superres_settings(config.model, config.model.sampling)

    def draw(state: TrainState) -> Images:
        text_ids = batch["text_ids"]
        text = embed_text({"params": state.extra["t5"]}, text_ids, config=config.model)
        apply = jax.tree_util.Partial(unet.apply, {"params": state.ema["superres"]})
        large = super_resolve_slices(
            apply,
            batch["low_res"][:, None],
            text,
            text_ids > 0,
            jnp.repeat(random_key(0)[None], len(text_ids)),
            settings,
            batch=1,
        )[:, 0]
        factor = settings.diffusion.image_size // batch["low_res"].shape[1]
        small = batch["low_res"].repeat(factor, axis=1).repeat(factor, axis=2)
        rows = np.concatenate([small, large, batch["high_res"]], axis=2)[..., 0]
        hu = from_unit(np.concatenate(rows))
        return {name: window_to_uint8(hu, limits) for name, limits in WINDOWS_HU.items()}

    return draw


SAMPLERS = {"ctvit": _ctvit_samples, "maskgit": _maskgit_samples, "superres": _superres_samples}

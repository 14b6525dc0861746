"""Sample images during training, one function per stage."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import PyTree

from data_pipelines.batches import Batch
from gct_jax.components import build_component
from gct_jax.random_keys import random_key
from gct_jax.sampling.cascade import embed_text
from gct_jax.sampling.guidance import with_guidance
from gct_jax.sampling.settings import superres_settings
from gct_jax.sampling.superres import super_resolve_batch
from gct_jax.sampling.token_decoding import DecodingPlan, decode_tokens
from gct_jax.sharding import REPLICATED
from gct_jax.training.config import TrainConfig
from gct_jax.training.maskgit import embedded_text
from gct_jax.training.stages import Components
from gct_jax.training.state import TrainState
from gct_jax.volumes.intensity import WINDOWS_HU, from_unit, window_to_uint8

Images = dict[str, np.ndarray]


def sample_function(
    config: TrainConfig, components: Components, shown: Batch
) -> Callable[[TrainState], Images]:
    """The stage's function state -> uint8 images by name, of the rows `shown`.

    Every process must call it: the networks lie on all devices. Everything else is the same
    everywhere and whole on each device, and so are the pictures.
    """
    return SAMPLERS[config.stage](config, components, shown)


def on_all_devices(function: Callable[..., Any]) -> Callable[..., Any]:
    """NumPy arrays of `function`, computed by all processes together; its first argument has global
    arrays, the others may have NumPy's."""

    @functools.cache
    def program(mesh: Mesh) -> Callable[..., Any]:
        return jax.jit(function, out_shardings=NamedSharding(mesh, REPLICATED))

    def call(*arguments: Any) -> Any:
        mesh = jax.tree.leaves(arguments[0])[0].sharding.mesh
        return jax.tree.map(np.asarray, program(mesh)(*arguments))

    return call


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


def _ctvit_samples(config: TrainConfig, components: Components, batch: Batch) -> Callable:
    """Original (left) and reconstruction."""
    network: Any = build_component(config.model, "ctvit")

    @on_all_devices
    def rebuild(params: PyTree, codebook: PyTree) -> jax.Array:
        variables = {"params": params, "codebook": {"quantizer": codebook}}
        rebuilt: jax.Array = network.apply(variables, batch["volume"]).reconstruction
        return rebuilt

    def draw(state: TrainState) -> Images:
        rebuilt = rebuild(state.ema["ctvit"], state.extra["codebook"])
        return volume_rows(batch["volume"], rebuilt)

    return draw


def _maskgit_samples(config: TrainConfig, components: Components, batch: Batch) -> Callable:
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

    @on_all_devices
    def paint(ema: PyTree, extra: PyTree, codec: PyTree) -> tuple[jax.Array, jax.Array]:
        rows = {name: jnp.asarray(array) for name, array in batch.items()}
        text, text_mask = embedded_text(ema, extra, config, rows)

        def apply(*inputs: Any) -> Any:
            return network.apply({"params": ema["maskgit"]}, *inputs)

        logits_fn = with_guidance(apply, text, text_mask, sampling.guidance)
        ids = decode_tokens(logits_fn, jax.random.split(random_key(0), len(text)), plan)
        true, drawn = (ctvit.apply(codec, x, method="decode") for x in (batch["token_ids"], ids))
        return true, drawn

    def draw(state: TrainState) -> Images:
        return volume_rows(*paint(state.ema, state.extra, components.variables["ctvit"]))

    return draw


def _superres_samples(config: TrainConfig, components: Components, batch: Batch) -> Callable:
    """Low resolution (left), super-resolved, true slice."""
    unet: Any = build_component(config.model, "superres")
    settings = superres_settings(config.model, config.model.sampling)
    text_ids = batch["text_ids"]

    @on_all_devices
    def enlarge(unet_params: PyTree, t5_params: PyTree) -> jax.Array:
        text = embed_text({"params": t5_params}, text_ids, config=config.model)
        return super_resolve_batch(
            jax.tree_util.Partial(unet.apply, {"params": unet_params}),
            batch["low_res"],
            jnp.zeros(len(text_ids), jnp.int32),
            {"text": text, "text_mask": text_ids > 0},
            jnp.repeat(random_key(0)[None], len(text_ids)),
            settings,
        )

    def draw(state: TrainState) -> Images:
        large = enlarge(state.ema["superres"], state.extra["t5"])
        factor = settings.diffusion.image_size // batch["low_res"].shape[1]
        small = batch["low_res"].repeat(factor, axis=1).repeat(factor, axis=2)
        rows = np.concatenate([small, large, batch["high_res"]], axis=2)[..., 0]
        hu = from_unit(np.concatenate(rows))
        return {name: window_to_uint8(hu, limits) for name, limits in WINDOWS_HU.items()}

    return draw


SAMPLERS = {"ctvit": _ctvit_samples, "maskgit": _maskgit_samples, "superres": _superres_samples}

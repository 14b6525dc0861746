"""Stage one: CT-ViT learns to rebuild volumes through its codebook (GenerateCT, section 3.1).

With x a volume, y its reconstruction, and s one random slice of each sample:

    L = w_r |x - y|^2 + w_l |lung(x) - lung(y)|^2 + w_s |soft(x) - soft(y)| + w_c commitment
        + w_p perceptual(x_s, y_s) + lambda generator(y_s)                                     (1)

The last two terms are optional, as is the discriminator; lung() and soft() keep the range of
aerated lung and of soft tissue as shares of their width: what is wrong with either changes it by
little beside the edges of bone and body. The codebook follows the encoder by moving averages;
hardly used rows are replaced by tokens of the batch. With `counterfactual_pairs` the squared errors
weigh more where two volumes of one patient differ, i.e. where the findings are, which are small and
rare.

Differences from the PyTorch trainer: one update of everything per batch, with the discriminator at
every `discriminator_every`-th (there: three generator updates, then one of the discriminator on a
further batch); the perceptual network is frozen, clipping sees the generator alone, the penalty
keeps its cadence, only CT-ViT is averaged. `gct_jax/interop/generatect/DIFFERENCES.md` lists all
differences.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from gct_jax.components import abstract_variables, build_component, init_component
from gct_jax.errors import ConfigError
from gct_jax.models import quantizer
from gct_jax.models.ctvit import CTViT, CTViTOutput, slice_to_token_mask
from gct_jax.models.discriminator import Discriminator
from gct_jax.models.norms import l2_normalize
from gct_jax.models.perceptual import VGG16Features
from gct_jax.models.token_grid import token_grid
from gct_jax.random_keys import row_uniforms
from gct_jax.training import counterfactual_pairs
from gct_jax.training import ctvit_losses as losses
from gct_jax.training.config import OptimizerConfig, TrainConfig
from gct_jax.training.hidden_units import cropped, padded
from gct_jax.training.micro_batches import in_micro_batches
from gct_jax.training.optimizer import (
    apply_gradients,
    learning_rate,
    make_optimizer,
    update_ema,
)
from gct_jax.training.state import TrainState
from gct_jax.volumes.intensity import WINDOWS_HU, from_unit

Metrics = dict[str, jax.Array]
LUNG_HU = (-1000.0, -400.0)  # from emphysema to ground glass
DIFFERENCE_THRESHOLD = 0.03  # in HU / 1000


def init_state(config: TrainConfig, key: jax.Array, pretrained: dict[str, PyTree]) -> TrainState:
    """Fresh state, or one that continues from `pretrained["ctvit"]`.

    Raises:
      ConfigError: the perceptual loss is on, but `pretrained` has no "vgg16".
    """
    ctvit_key, discriminator_key = jax.random.split(key)
    variables = pretrained.get("ctvit")
    if variables is None:
        variables = init_component(config.model, "ctvit", ctvit_key)
    params = {"ctvit": padded(variables["params"])}
    optimizers = {"ctvit": make_optimizer(config.optimizer, config.loop.steps)}
    extra = {"codebook": variables["codebook"]["quantizer"]}
    if config.ctvit.adversarial:
        network: Any = build_component(config.model, "ctvit", config.dtype)
        size = config.model.volume.image_size
        images = jnp.zeros((1, size, size, network.channels))
        params["discriminator"] = discriminator(config).init(discriminator_key, images)["params"]
        optimizers["discriminator"] = make_optimizer(
            discriminator_optimizer(config), config.loop.steps
        )
    if config.ctvit.perceptual_weight:
        if "vgg16" not in pretrained:
            raise ConfigError("ctvit.perceptual_weight > 0 needs ctvit.vgg16, a file of weights")
        extra["vgg16"] = pretrained["vgg16"]
    return TrainState(
        step=jnp.int32(0),
        key=key,
        params=params,
        ema={"ctvit": params["ctvit"]},
        opt_state={name: tx.init(params[name]) for name, tx in optimizers.items()},
        extra=extra,
    )


def discriminator(config: TrainConfig) -> Discriminator:
    """The run's slice discriminator."""
    return Discriminator(config.ctvit.discriminator_base_dim)


def discriminator_optimizer(config: TrainConfig) -> OptimizerConfig:
    """Its optimizer: the generator's with a learning rate of its own."""
    rate = config.ctvit.discriminator_learning_rate
    return dataclasses.replace(config.optimizer, learning_rate=rate)


def padding_mask(config: TrainConfig, batch: dict[str, jax.Array]) -> jax.Array | None:
    """Which tokens are not padding, [b, t, h, w] bool; None: all."""
    slice_mask = batch.get("slice_mask")
    if slice_mask is None:
        return None
    codec = config.model.ctvit
    assert codec is not None  # it is what is trained
    grid = token_grid(
        *batch["volume"].shape[1:4],
        patch_size=codec.patch_size,
        temporal_patch_size=codec.temporal_patch_size,
    )
    return slice_to_token_mask(slice_mask, grid, codec.temporal_patch_size)


def window_difference(
    volume: jax.Array, reconstruction: jax.Array, window_hu: tuple[float, float]
) -> jax.Array:
    """Difference of volumes in [-1, 1] after clipping to a window, as a share of its width."""
    low, high = window_hu
    clipped = [from_unit(x).clip(low, high) for x in (volume, reconstruction)]
    return (clipped[0] - clipped[1]) / (high - low)


def forward(
    config: TrainConfig,
    variables: PyTree,
    volume: jax.Array,
    step: jax.Array,
    token_mask: jax.Array | None = None,
) -> CTViTOutput:
    """CT-ViT on volumes [b, d, h, w, c] as it is trained; token_mask [b, t, h, w] bool, False where
    a volume is padded.

    The decoder's gradient reaches the latents' directions, which is all that the quantiser looks
    at; through the raw latents it would outweigh the normalised commitment by their length. For
    the first `continuous_steps` the decoder sees the directions themselves.
    """
    network: Any = build_component(config.model, "ctvit", config.dtype, remat=config.remat)

    def rows(volume: jax.Array, token_mask: jax.Array | None) -> CTViTOutput:
        if config.ctvit.commitment == "reference":
            out: CTViTOutput = network.apply(variables, volume, token_mask)
            return out
        latents = network.apply(variables, volume, token_mask, method=CTViT.embed)
        embedding = variables["codebook"]["quantizer"]["embedding"]
        ids = quantizer.nearest_codes(latents, embedding)
        directions = l2_normalize(latents)
        codes = quantizer.straight_through(directions, embedding[ids])
        codes = jnp.where(step < config.ctvit.continuous_steps, directions, codes)
        features = network.apply(variables, codes, token_mask, method=CTViT.decode_features)
        reconstruction = network.apply(variables, features, method=CTViT.to_pixels)
        return CTViTOutput(reconstruction, ids, latents, codes, features)

    made: CTViTOutput = in_micro_batches(rows, config.loop.micro_batches)(volume, token_mask)
    return made


def generator_loss(
    params: PyTree,
    state: TrainState,
    config: TrainConfig,
    batch: dict[str, jax.Array],
    key: jax.Array,
) -> tuple[jax.Array, tuple[Metrics, CTViTOutput]]:
    """Equation (1) of CT-ViT's `params`, over the real slices; batch as in `train_step`."""
    weights, codebook = config.ctvit, state.extra["codebook"]
    volume, slice_mask = batch["volume"], batch.get("slice_mask")
    token_mask = padding_mask(config, batch)
    network: Any = build_component(config.model, "ctvit", config.dtype)
    variables = {"params": params, "codebook": {"quantizer": codebook}}
    out = forward(config, variables, volume, state.step, token_mask)
    reconstruction = losses.reconstruction_loss(volume, out.reconstruction, slice_mask)
    weight = jnp.float32(1)
    if weights.counterfactual_pairs:
        weight = counterfactual_pairs.difference_weight(
            volume, weights.counterfactual_weight, DIFFERENCE_THRESHOLD
        )
    weighted = losses.masked_mean(weight * jnp.square(volume - out.reconstruction), slice_mask)
    commitment = losses.commitment_loss(
        out.latents, out.codes, form=weights.commitment, token_mask=token_mask
    )
    soft = window_difference(volume, out.reconstruction, WINDOWS_HU["mediastinal"])
    soft_tissue = losses.masked_mean(jnp.abs(soft), slice_mask)
    lung = losses.masked_mean(
        weight * jnp.square(window_difference(volume, out.reconstruction, LUNG_HU)), slice_mask
    )
    loss = (
        weights.reconstruction_weight * weighted
        + weights.commitment_weight * commitment
        + weights.soft_tissue_weight * soft_tissue
        + weights.lung_weight * lung
    )
    usage = quantizer.codebook_usage(out.ids, codebook["embedding"].shape[0], token_mask)
    metrics = {
        "reconstruction": reconstruction,
        "weighted_reconstruction": weighted,
        "commitment": commitment,
        "soft_tissue_error": soft_tissue,
        "lung_error": lung,
        "psnr": 10 * jnp.log10(4 / reconstruction),  # the range [-1, 1] squared is 4
        **{f"codebook/{name}": value for name, value in usage.items()},
    }

    index = losses.choose_slices(row_uniforms(key, volume.shape[:2]), slice_mask)
    real = losses.take_slices(volume, index)  # [b, h, w, c]

    def perceptual(fake: jax.Array) -> jax.Array:
        if "vgg16" not in state.extra:
            return losses.reconstruction_loss(real, fake)
        vgg = VGG16Features(dtype=config.dtype)
        features: Any = functools.partial(vgg.apply, {"params": state.extra["vgg16"]})
        return losses.perceptual_loss(features, real, fake)

    fake = losses.take_slices(out.reconstruction, index)
    if weights.perceptual_weight:
        metrics["perceptual"] = perceptual(fake)
        loss += weights.perceptual_weight * metrics["perceptual"]
    if weights.adversarial:

        def adversarial(fake: jax.Array) -> jax.Array:
            return losses.generator_hinge_loss(judge(config, state.params["discriminator"], fake))

        def repaint(kernels: Any) -> jax.Array:
            layers = {name: {**params[name], "kernel": kernels[name]} for name in kernels}
            volume = network.apply(
                {**variables, "params": {**params, **layers}},
                jax.lax.stop_gradient(out.features),
                method=CTViT.to_pixels,
            )
            return losses.take_slices(volume, index)

        kernels = {name: params[name]["kernel"] for name in ("first_pixels", "pixels")}
        factor = losses.adaptive_weight(
            lambda k: perceptual(repaint(k)), lambda k: adversarial(repaint(k)), kernels
        )
        factor *= state.step >= weights.discriminator_start_step
        metrics |= {"generator": adversarial(fake), "adversarial_weight": factor}
        loss += factor * metrics["generator"]
    return loss, ({"loss": loss, **metrics}, out)


def judge(config: TrainConfig, params: PyTree, images: jax.Array) -> jax.Array:
    """The discriminator's logits [b] of slices [b, h, w, c]."""
    logits: Any = discriminator(config).apply({"params": params}, images)
    return logits


def discriminator_loss(
    params: PyTree, config: TrainConfig, real: jax.Array, fake: jax.Array, penalize: jax.Array
) -> jax.Array:
    """Hinge loss of slices [b, h, w, c], with the gradient penalty where `penalize` (scalar)."""
    hinge = losses.discriminator_hinge_loss(
        judge(config, params, fake), judge(config, params, real)
    )
    penalty = jax.lax.cond(
        penalize,
        lambda: losses.gradient_penalty(lambda images: judge(config, params, images), real),
        lambda: 0.0,
    )
    return hinge + penalty


def train_step(
    config: TrainConfig, state: TrainState, batch: dict[str, jax.Array], key: jax.Array
) -> tuple[TrainState, Metrics]:
    """One update of CT-ViT, its codebook and, when its turn has come, the discriminator.

    batch: {'volume' [b, d, h, w, c] float32 in [-1, 1]} and, of volumes of several depths,
      'slice_mask' [b, d] bool, False for slices that pad the end.
    """
    slice_key, codebook_key, judged_key = jax.random.split(key, 3)
    (_, (metrics, out)), grads = jax.value_and_grad(generator_loss, has_aux=True)(
        state.params["ctvit"], state, config, batch, slice_key
    )
    ctvit, ctvit_opt, norms = apply_gradients(
        make_optimizer(config.optimizer, config.loop.steps),
        grads,
        state.opt_state["ctvit"],
        state.params["ctvit"],
    )
    params, opt_state = {"ctvit": ctvit}, {"ctvit": ctvit_opt}
    if config.ctvit.adversarial:
        params["discriminator"], opt_state["discriminator"], metrics["discriminator"] = (
            discriminator_step(config, state, batch, out.reconstruction, judged_key)
        )
    average = update_ema(state.ema, {"ctvit": ctvit}, state.step, config.optimizer.ema_decay)
    codebook = update_codebook(config, state, out, codebook_key, padding_mask(config, batch))
    rate = learning_rate(config.optimizer, config.loop.steps, state.step)
    state = state.replace(
        params=params,
        ema=average,
        opt_state=opt_state,
        extra={**state.extra, "codebook": codebook},
    )
    return state, {**metrics, **norms, "learning_rate": rate}


def discriminator_step(
    config: TrainConfig,
    state: TrainState,
    batch: dict[str, jax.Array],
    rebuilt: jax.Array,
    key: jax.Array,
) -> tuple[Any, Any, jax.Array]:
    """New discriminator, its optimizer state and loss (0 when it is not its turn)."""
    start, every = config.ctvit.discriminator_start_step, config.ctvit.discriminator_every
    turns = (state.step - start + 1) // every
    due = (state.step >= start) & ((state.step - start + 1) % every == 0)
    volume, slice_mask = batch["volume"], batch.get("slice_mask")
    scores = row_uniforms(key, volume.shape[:2])
    index = losses.choose_slices(scores, slice_mask, include_first=True)
    real, fake = losses.take_slices(volume, index), losses.take_slices(rebuilt, index)
    params, opt_state = state.params["discriminator"], state.opt_state["discriminator"]

    def update() -> tuple[Any, Any, jax.Array]:
        loss, grads = jax.value_and_grad(discriminator_loss)(
            params, config, real, fake, turns % config.ctvit.penalty_every == 0
        )
        optimizer = make_optimizer(discriminator_optimizer(config), config.loop.steps)
        new_params, new_opt_state, _ = apply_gradients(optimizer, grads, opt_state, params)
        return new_params, new_opt_state, loss

    return jax.lax.cond(due, update, lambda: (params, opt_state, jnp.float32(0)))


def update_codebook(
    config: TrainConfig,
    state: TrainState,
    out: CTViTOutput,
    key: jax.Array,
    token_mask: jax.Array | None = None,
) -> Any:
    """Moving averages and revival; until the decoder sees codes, a batch's tokens are the book."""
    codebook = state.extra["codebook"]

    def begin() -> Any:
        codes = codebook["embedding"].shape[0]
        return quantizer.codebook_from_latents(key, out.latents, codes, token_mask)

    def follow() -> Any:
        moved = quantizer.ema_update(
            codebook,
            out.latents,
            out.ids,
            decay=config.ctvit.codebook_decay,
            token_mask=token_mask,
        )
        return quantizer.revive_dead_codes(
            key,
            moved,
            out.latents,
            threshold=config.ctvit.dead_code_threshold,
            token_mask=token_mask,
        )

    fresh = jnp.sum(codebook["cluster_size"]) == 0  # never updated
    return jax.lax.cond(fresh | (state.step < config.ctvit.continuous_steps), begin, follow)


def eval_step(
    config: TrainConfig, state: TrainState, batch: dict[str, jax.Array], key: jax.Array
) -> Metrics:
    """Losses of the averaged weights."""
    _, (metrics, _) = generator_loss(state.ema["ctvit"], state, config, batch, key)
    return metrics


def shipped_items(config: TrainConfig) -> tuple[str, ...]:
    """What `trained_components` needs of a checkpoint."""
    return ("ema.ctvit", "extra.codebook")


def trained_components(config: TrainConfig, state: TrainState) -> dict[str, Any]:
    """Averaged weights and codebook as the component of a model folder."""
    codebook = {"quantizer": state.extra["codebook"]}
    published = abstract_variables(config.model, "ctvit")["params"]
    params = cropped(state.ema["ctvit"], published)
    return {"ctvit": {"params": params, "codebook": codebook}}

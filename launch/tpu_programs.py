"""The programs of the published model as shapes only: what a TPU compiler needs of them.

Nothing is computed and no weight exists: every array is a `jax.ShapeDtypeStruct` with the sharding
that training and sampling would give it.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from gct_jax.components import abstract_variables, build_component
from gct_jax.config import ModelConfig
from gct_jax.kernels.attention import attention
from gct_jax.kernels.bias import RelativeBias
from gct_jax.models.perceptual import VGG16Features
from gct_jax.models.transformer import COSINE_SCALE
from gct_jax.random_keys import random_key
from gct_jax.sampling.cascade import model_token_grid
from gct_jax.sampling.guidance import with_guidance
from gct_jax.sampling.settings import superres_settings
from gct_jax.sampling.superres import super_resolve_batch
from gct_jax.sampling.token_decoding import DecodingPlan, decode_tokens
from gct_jax.sharding import BATCH, state_shardings
from gct_jax.training.config import TrainConfig
from gct_jax.training.loop import jitted_train_step, with_shardings
from gct_jax.training.stages import make_stage

VGG_IMAGE = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)


def train_step(config: TrainConfig, mesh: Mesh) -> jax.stages.Lowered:
    """One training step of a stage, state and batch laid out over the mesh."""
    stage = make_stage(config)
    pretrained = {}
    if config.ctvit.perceptual_weight:
        vgg = jax.eval_shape(VGG16Features().init, random_key(0), VGG_IMAGE)
        pretrained["vgg16"] = vgg["params"]
    abstract = jax.eval_shape(stage.init_state, random_key(0), pretrained)
    shardings = state_shardings(abstract, mesh)
    step = jitted_train_step(stage, shardings, mesh)
    with jax.set_mesh(mesh):
        return step.lower(with_shardings(abstract, shardings), _batch(config, mesh), None)


def sample_volumes(model: ModelConfig, mesh: Mesh, prompts: int, dtype: str) -> jax.stages.Lowered:
    """Text embeddings of `prompts` prompts to volumes [prompts, depth, height, width, channels]:
    MaskGIT's guided decoding and CT-ViT's decoder in one program, weights on every chip."""
    assert model.maskgit and model.t5
    maskgit, ctvit = (
        build_component(model, component, dtype) for component in ("maskgit", "ctvit")
    )
    plan = DecodingPlan(
        grid=model_token_grid(model, model.volume.slices),
        mask_id=model.maskgit.num_tokens,
        steps=model.sampling.steps,
        temperature=model.sampling.temperature,
    )

    def sample(variables: PyTree, keys: jax.Array, text: jax.Array, mask: jax.Array) -> jax.Array:
        apply = functools.partial(maskgit.apply, variables["maskgit"])
        logits_fn = with_guidance(apply, text, mask, jnp.float32(model.sampling.guidance))
        ids = decode_tokens(logits_fn, keys, plan)
        return ctvit.apply(variables["ctvit"], ids, method="decode")

    variables = {
        component: abstract_variables(model, component) for component in ("maskgit", "ctvit")
    }
    length = model.t5.max_length
    inputs = {
        "keys": jax.eval_shape(lambda: jax.random.split(random_key(0), prompts)),
        "text": jax.ShapeDtypeStruct((prompts, length, model.t5.dim), jnp.float32),
        "mask": jax.ShapeDtypeStruct((prompts, length), jnp.bool_),
    }
    with jax.set_mesh(mesh):
        return jax.jit(sample).lower(_placed(variables, mesh, P()), **_placed(inputs, mesh, BATCH))


def super_resolve(model: ModelConfig, mesh: Mesh, slices: int, dtype: str) -> jax.stages.Lowered:
    """A batch of slices from noise to image, every step, weights on every chip."""
    assert model.t5 and model.superres and model.diffusion
    apply = build_component(model, "superres", dtype).apply
    unet, size = model.superres, model.volume.image_size
    settings = superres_settings(model, model.sampling)
    length = model.t5.max_length
    rows = {
        "low_res": jax.ShapeDtypeStruct((slices, size, size, unet.channels), jnp.float32),
        "index": jax.ShapeDtypeStruct((slices,), jnp.int32),
        "prompt": {
            "text": jax.ShapeDtypeStruct((slices, length, model.t5.dim), jnp.float32),
            "text_mask": jax.ShapeDtypeStruct((slices, length), jnp.bool_),
        },
        "keys": jax.eval_shape(lambda: jax.random.split(random_key(0), slices)),
    }

    def run(variables: PyTree, rows: dict[str, PyTree]) -> jax.Array:
        return super_resolve_batch(
            jax.tree_util.Partial(apply, variables),
            **rows,
            settings=settings,
        )

    variables = abstract_variables(model, "superres")
    with jax.set_mesh(mesh):
        return jax.jit(run).lower(_placed(variables, mesh, P()), _placed(rows, mesh, BATCH))


def attend(
    model: ModelConfig, mesh: Mesh, prompts: int, dtype: str, *, backward: bool
) -> jax.stages.Lowered:
    """The flash kernel on the tokens of one MaskGIT layer, or its gradients, the bias table's
    included."""
    assert model.maskgit
    grid = model_token_grid(model, model.volume.slices)
    heads, width = model.maskgit.heads, model.maskgit.dim_head
    tokens = jax.ShapeDtypeStruct((prompts, math.prod(grid), heads, width), jnp.dtype(dtype))
    offsets = jax.ShapeDtypeStruct((heads, *(2 * size - 1 for size in grid)), jnp.float32)

    def forward(table: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        bias = RelativeBias(table, grid)
        return attention(q, k, v, scale=COSINE_SCALE, bias=bias, backend="flash")

    def gradients(*inputs: jax.Array) -> tuple[jax.Array, ...]:
        def total(*inputs: jax.Array) -> jax.Array:
            return forward(*inputs).astype(jnp.float32).sum()

        return jax.grad(total, (0, 1, 2, 3))(*inputs)

    with jax.set_mesh(mesh):
        placed = [_placed(tokens, mesh, BATCH)] * 3
        return jax.jit(gradients if backward else forward).lower(
            _placed(offsets, mesh, P()), *placed
        )


def _batch(config: TrainConfig, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of the stage as `launch.train` would feed it."""
    model, rows = config.model, config.loop.batch_size
    assert model.t5
    size = model.volume.image_size
    text = jax.ShapeDtypeStruct((rows, model.t5.max_length), jnp.int32)
    if config.stage == "ctvit":
        shape = (rows, model.volume.slices, size, size, 1)
        batch = {"volume": jax.ShapeDtypeStruct(shape, jnp.float32)}
    elif config.stage == "maskgit":
        ids = jax.ShapeDtypeStruct((rows, *model_token_grid(model, model.volume.slices)), jnp.int32)
        batch = {"token_ids": ids, "text_ids": text}
    else:
        assert model.diffusion
        large = model.diffusion.image_size
        batch = {
            "low_res": jax.ShapeDtypeStruct((rows, size, size, 1), jnp.float32),
            "high_res": jax.ShapeDtypeStruct((rows, large, large, 1), jnp.float32),
            "text_ids": text,
        }
    return _placed(batch, mesh, BATCH)


def _placed(tree: PyTree, mesh: Mesh, spec: P) -> PyTree:
    """The same shapes with a sharding."""
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def with_rows(config: TrainConfig, rows: int, dtype: str) -> TrainConfig:
    """The configuration with another batch size and compute type."""
    loop = dataclasses.replace(config.loop, batch_size=rows)
    return dataclasses.replace(config, loop=loop, dtype=dtype)

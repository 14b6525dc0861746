"""The programs of training and generation as shapes only: what a TPU compiler needs of them.

Nothing is computed and no weight exists: every array is a `jax.ShapeDtypeStruct` with the sharding
that training and sampling would give it.
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from gct_jax.components import abstract_variables, build_component, present_components
from gct_jax.config import ModelConfig
from gct_jax.kernels.attention import attention
from gct_jax.kernels.bias import RelativeBias
from gct_jax.models.perceptual import VGG16Features
from gct_jax.models.transformer import COSINE_SCALE
from gct_jax.random_keys import random_key
from gct_jax.sampling import programs
from gct_jax.sampling.cascade import model_token_grid, sampling_program
from gct_jax.sampling.settings import Settings, choose_settings, superres_settings
from gct_jax.sampling.superres import super_resolve_batch
from gct_jax.sharding import BATCH, make_mesh, state_shardings
from gct_jax.training.config import TrainConfig
from gct_jax.training.loop import jitted_train_step, with_shardings
from gct_jax.training.stages import make_stage
from gct_jax.training.state import TrainState

VGG_IMAGE = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)


def abstract_state(config: TrainConfig) -> TrainState:
    """The state of a stage as shapes, with the networks that it takes from elsewhere."""
    pretrained = {}
    if config.stage == "ctvit" and config.ctvit.perceptual_weight:
        vgg = jax.eval_shape(VGG16Features().init, random_key(0), VGG_IMAGE)
        pretrained["vgg16"] = vgg["params"]
    state: TrainState = jax.eval_shape(make_stage(config).init_state, random_key(0), pretrained)
    return state


def train_step(config: TrainConfig, mesh: Mesh) -> jax.stages.Lowered:
    """One training step of a stage, state and batch laid out over the mesh."""
    abstract = abstract_state(config)
    shardings = state_shardings(abstract, mesh)
    step = jitted_train_step(make_stage(config), shardings, mesh, config.optimizer.spike_factor)
    with jax.set_mesh(mesh):
        return step.lower(with_shardings(abstract, shardings), _batch(config, mesh), None)


def sample_volumes(model: ModelConfig, mesh: Mesh, prompts: int, dtype: str) -> jax.stages.Lowered:
    """What `generate` runs of `prompts` prompts up to the low-resolution volumes, on each chip the
    same program (`gct_jax.sampling.programs.sample_volumes`)."""
    assert model.t5
    program = sampling_program(model, _settings(model, dtype))
    names = [name for name in present_components(model) if name != "superres"]
    variables = {name: abstract_variables(model, name) for name in names}
    inputs = (
        jax.ShapeDtypeStruct((prompts, model.t5.max_length), jnp.int32),
        jax.eval_shape(lambda: jax.random.split(random_key(0), prompts)),
        jax.ShapeDtypeStruct((), jnp.int32),
        jax.ShapeDtypeStruct((), jnp.float32),
    )
    alone = _one_chip(mesh)
    with jax.set_mesh(alone):
        placed = _placed((variables, *inputs), alone, P())
        return programs.sample_volumes.lower(*placed, program=program)


def super_resolve(model: ModelConfig, mesh: Mesh, slices: int, dtype: str) -> jax.stages.Lowered:
    """What `generate` runs of a batch of slices, every step; slices are split over all chips."""
    assert model.t5 and model.superres and model.diffusion
    apply = build_component(model, "superres", dtype).apply
    unet, size, length = model.superres, model.volume.image_size, model.t5.max_length
    prompt = {
        "text": jax.ShapeDtypeStruct((slices, length, model.t5.dim), jnp.float32),
        "text_mask": jax.ShapeDtypeStruct((slices, length), jnp.bool_),
    }
    rows = (
        jax.ShapeDtypeStruct((slices, size, size, unet.channels), jnp.float32),
        jax.ShapeDtypeStruct((slices,), jnp.int32),
        prompt if unet.text_embed_dim else {},
        jax.eval_shape(lambda: jax.random.split(random_key(0), slices)),
    )
    variables = _placed(abstract_variables(model, "superres"), mesh, P())
    with jax.set_mesh(mesh):
        network = jax.tree_util.Partial(apply, variables)
        placed = _placed(rows, mesh, BATCH)
        settings = superres_settings(model, _settings(model, dtype))
        return super_resolve_batch.lower(network, *placed, settings)


def _settings(model: ModelConfig, dtype: str) -> Settings:
    return choose_settings(model, slices=model.volume.slices, dtype=dtype)


def _one_chip(mesh: Mesh) -> Mesh:
    return make_mesh((1, 1, 1), list(mesh.devices.flat))


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

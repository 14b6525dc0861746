"""Our side: a case as one compiled JAX program."""

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree
from safetensors.numpy import load_file

from gct_jax.components import abstract_variables, build_component
from gct_jax.config import ModelConfig
from gct_jax.corruption.masking import masked_cross_entropy
from gct_jax.interop.generatect.files import LAYOUTS
from gct_jax.models.ctvit import CTViT
from gct_jax.models.quantizer import ema_update
from launch.benchmark.cases import SIZES, Case
from launch.benchmark.measure import best_seconds

Arrays = dict[str, Any]
ADAM = {"learning_rate": 3e-5, "b1": 0.9, "b2": 0.99, "eps": 1e-8}
CODEBOOK_DECAY = 0.8  # of the published model
GRADIENT_SCALE = 0.1


def load_call(
    case: Case, model: ModelConfig, weights: Path, inputs: Path, dtype: str
) -> Callable[[], Any]:
    """Compile the case; see `make_call`. Batch 1, weights in float32, computation in `dtype`."""
    state = load_file(weights)
    variables = jax.device_put(LAYOUTS[case.part](getattr(model, case.part)).from_reference(state))
    del state
    with np.load(inputs) as arrays:
        batch = jax.device_put(dict(arrays))
    return make_call(model, case, jnp.dtype(dtype), variables, batch)


def make_call(
    model: ModelConfig, case: Case, dtype: Any, variables: Arrays, batch: Arrays
) -> Callable[[], Any]:
    """A call without arguments that waits for its result. A training step goes on from the last."""
    if case.task != "train":
        forward = jax.jit(forward_function(case, network(model, case, dtype)))
        return finished(forward.lower(variables, batch).compile(), variables, batch)
    optimizer = optax.adam(**ADAM)
    state = (variables, jax.jit(optimizer.init)(variables["params"]))
    step = train_function(case, network(model, case, dtype, remat=True))
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    holder = [state]  # whose arrays are given away with each step

    def call() -> Any:
        holder[0], loss = jax.block_until_ready(compiled(holder[0], batch))
        return loss

    return call


def finished(program: Callable, *arguments: Any) -> Callable[[], Any]:
    """A call of `program` that waits for its result."""
    return lambda: jax.block_until_ready(program(*arguments))


def network(
    model: ModelConfig, case: Case, dtype: Any, backend: str = "auto", remat: bool = False
) -> Any:
    """The case's module; `backend` is that of MaskGIT's attention."""
    if case.part != "maskgit":
        return build_component(model, case.part, dtype, remat=remat)
    scale = GRADIENT_SCALE if case.task == "train" else 1.0
    options = {"scale_gradient": scale, "backend": backend, "remat": remat}
    return build_component(model, case.part, dtype, **options)


def forward_function(case: Case, module: Any) -> Callable[[Arrays, Arrays], Any]:
    """(variables, batch) -> output; `batch` is explained at `prepare.input_shapes`."""

    def forward(variables: Arrays, batch: Arrays) -> Any:
        if case.task == "encode":
            return module.apply(variables, batch["volume"], method=CTViT.encode)
        if case.task == "decode":
            return module.apply(variables, batch["ids"], method=CTViT.decode)
        if case.part == "maskgit":
            return module.apply(variables, batch["ids"], batch["context"], batch["context_mask"])
        conditions = {k: x for k, x in batch.items() if k not in ("x", "log_snr", "target")}
        return module.apply(variables, batch["x"], batch["log_snr"], **conditions)

    return forward


def train_function(case: Case, module: Any) -> Callable[[Any, Arrays], Any]:
    """((variables, Adam's state), batch) -> (their successors, loss)."""
    forward = forward_function(case, module)
    optimizer = optax.adam(**ADAM)

    def loss_fn(params: PyTree, rest: Arrays, batch: Arrays) -> tuple[jax.Array, Any]:
        variables = {**rest, "params": params}
        if case.part == "maskgit":
            shown = jnp.where(batch["hidden"], module.num_tokens, batch["ids"])
            logits = forward(variables, {**batch, "ids": shown})
            return masked_cross_entropy(logits, batch["ids"], batch["hidden"]), None
        if case.part == "ctvit":
            out = module.apply(variables, batch["volume"])
            error = jnp.mean(jnp.square(out.reconstruction - batch["volume"]))
            return error, (out.latents, out.ids)
        return jnp.mean(jnp.square(forward(variables, batch) - batch["target"])), None

    def step(state: Any, batch: Arrays) -> Any:
        variables, adam = state
        rest = {name: tree for name, tree in variables.items() if name != "params"}
        params = variables["params"]
        (loss, seen), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, rest, batch)
        updates, adam = optimizer.update(grads, adam, params)
        if case.part == "ctvit":
            book = rest["codebook"]["quantizer"]
            book = ema_update(book, *seen, decay=CODEBOOK_DECAY, weighting="code")
            rest = {"codebook": {"quantizer": book}}
        return ({**rest, "params": optax.apply_updates(params, updates)}, adam), loss

    return step


def abstract_call(model: ModelConfig, case: Case, batch: Arrays) -> tuple:
    """The case as a function and its abstract arguments. Attention is the dense one, so that no
    recomputation of a memory-saving backend passes for work."""
    variables = abstract_variables(model, case.part)
    module = network(model, case, jnp.float32, "dense")
    if case.task != "train":
        return forward_function(case, module), variables, batch
    adam = jax.eval_shape(optax.adam(**ADAM).init, variables["params"])
    return train_function(case, module), (variables, adam), batch


def ceiling(sizes: str, dtype: str, repeats: int = 5) -> dict[str, float]:
    """Highest measured operations per second of a matrix product and of a 3 x 3 convolution."""
    found = {"matmul": 0.0, "convolution": 0.0}
    for n in SIZES[sizes].matmul_sides:
        a = jnp.ones((n, n), dtype)
        product = jax.jit(jnp.matmul).lower(a, a).compile()
        seconds = best_seconds(finished(product, a, a), repeats)
        found["matmul"] = max(found["matmul"], 2 * n**3 / seconds)
    for side, channels in SIZES[sizes].convolutions:
        image = jnp.ones((1, side, side, channels), dtype)
        kernel = jnp.ones((3, 3, channels, channels), dtype)
        filtered = jax.jit(
            lambda x, k: jax.lax.conv_general_dilated(
                x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        )
        program = filtered.lower(image, kernel).compile()
        seconds = best_seconds(finished(program, image, kernel), repeats)
        flops = 2 * 9 * side**2 * channels**2
        found["convolution"] = max(found["convolution"], flops / seconds)
    return found


def device() -> dict[str, Any]:
    """The device that computes, and what its memory held at most (accelerators only)."""
    first = jax.devices()[0]
    stats = first.memory_stats() or {}
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "peak_device_bytes": stats.get("peak_bytes_in_use"),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")},
    }

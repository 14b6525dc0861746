"""Read and write the encoder of a Hugging Face T5 1.1 folder, as `save_pretrained` does."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from gct_jax.config import T5Config, module_fields
from gct_jax.errors import ModelFolderError
from gct_jax.interop.weight_files import (
    as_float32,
    read_safetensors,
    read_weight_file,
    without_wrappers,
    write_safetensors,
)
from gct_jax.models.t5 import BUCKETS, MAX_DISTANCE, T5Encoder
from gct_jax.random_keys import random_key
from gct_jax.text import EOS_ID, PAD_ID

# Fields of `config.json` whose value the encoder has built in.
FIXED_FIELDS = {
    "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": BUCKETS,
    "relative_attention_max_distance": MAX_DISTANCE,
    "layer_norm_epsilon": 1e-6,
}
# Our path and its name in the state dict; {0} is the layer. All but the embedding are transposed.
EMBEDDING = "token_embedder/embedding"
NAMES = {
    EMBEDDING: "shared.weight",
    "encoder/relpos_bias/rel_embedding": (
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    ),
    "encoder/encoder_norm/scale": "encoder.final_layer_norm.weight",
}
ENCODER_EMBEDDING = "encoder.embed_tokens.weight"
LAYER_NAMES = {
    "pre_attention_layer_norm/scale": "layer.0.layer_norm.weight",
    "attention/query/kernel": "layer.0.SelfAttention.q.weight",
    "attention/key/kernel": "layer.0.SelfAttention.k.weight",
    "attention/value/kernel": "layer.0.SelfAttention.v.weight",
    "attention/out/kernel": "layer.0.SelfAttention.o.weight",
    "pre_mlp_layer_norm/scale": "layer.1.layer_norm.weight",
    "mlp/wi_0/kernel": "layer.1.DenseReluDense.wi_0.weight",
    "mlp/wi_1/kernel": "layer.1.DenseReluDense.wi_1.weight",
    "mlp/wo/kernel": "layer.1.DenseReluDense.wo.weight",
}


def t5_from_huggingface(
    folder: str | Path, max_length: int = 256
) -> tuple[T5Config, dict[str, Any]]:
    """Config and variables of `T5Encoder` from a folder; a full T5's decoder is left out.

    Args:
      folder: holds `config.json` and `model.safetensors`, the latter in shards with its index, or
        `pytorch_model.bin`.
      max_length: tokens per text, with the end token; the folder does not record it.

    Returns:
      The config and `{"params": ...}` with float32 NumPy arrays.

    Raises:
      ModelFolderError: a file or tensor is missing, damaged or of another shape, or the model is
        another kind of T5.
    """
    folder = Path(folder)
    fields = {"feed_forward_proj": "relu", **_read_json(folder / "config.json")}
    for name, value in FIXED_FIELDS.items():
        if fields.get(name, value) != value:
            raise ModelFolderError(
                f"{folder}/config.json: {name} is {fields[name]!r}, T5 1.1 has {value!r}"
            )
    try:
        config = T5Config(
            vocab_size=fields["vocab_size"],
            dim=fields["d_model"],
            depth=fields["num_layers"],
            heads=fields["num_heads"],
            dim_head=fields["d_kv"],
            mlp_dim=fields["d_ff"],
            max_length=max_length,
        )
    except KeyError as error:
        raise ModelFolderError(f"{folder}/config.json has no field {error}") from None
    return config, t5_from_state(_read_weights(folder), config)


def t5_from_state(state: dict[str, np.ndarray], config: T5Config) -> dict[str, Any]:
    """Variables of `T5Encoder` from a Hugging Face state dict.

    Raises:
      ModelFolderError: a tensor is missing or of another shape than `config` asks for.
    """
    names = _names(config)
    init = T5Encoder(**module_fields(config)).init
    abstract = jax.eval_shape(init, random_key(0), jnp.zeros((1, 1), jnp.int32))
    params = {}
    state = {without_wrappers(n).removeprefix("transformer."): x for n, x in state.items()}
    for path, leaf in flatten_dict(abstract["params"], sep="/").items():
        name = names[path]
        if path == EMBEDDING and name not in state:
            name = ENCODER_EMBEDDING  # the same tensor, of an encoder that was saved alone
        if name not in state:
            named = f"{names[path]} (or {name})" if name != names[path] else name
            raise ModelFolderError(f"T5 weights: tensor {named} is missing")
        value = as_float32(name, state[name])
        value = value if path == EMBEDDING else value.T
        if value.shape != leaf.shape:
            raise ModelFolderError(
                f"T5 weights: tensor {name} has shape {state[name].shape}, "
                f"config.json asks for {leaf.shape if path == EMBEDDING else leaf.shape[::-1]}"
            )
        params[path] = value
    return {"params": unflatten_dict(params, sep="/")}


def t5_to_huggingface(config: T5Config, variables: dict[str, PyTree], folder: str | Path) -> None:
    """Write `config.json` and `model.safetensors`, which `T5EncoderModel.from_pretrained` reads."""
    flat = flatten_dict(jax.device_get(variables["params"]), sep="/")
    state = {
        name: np.asarray(flat[path]) if path == EMBEDDING else np.asarray(flat[path]).T
        for path, name in _names(config).items()
    }
    fields = {
        "model_type": "t5",
        "architectures": ["T5EncoderModel"],
        "vocab_size": config.vocab_size,
        "d_model": config.dim,
        "num_layers": config.depth,
        "num_heads": config.heads,
        "d_kv": config.dim_head,
        "d_ff": config.mlp_dim,
        "is_encoder_decoder": False,
        "pad_token_id": PAD_ID,
        "eos_token_id": EOS_ID,
        **FIXED_FIELDS,
    }
    write_safetensors(Path(folder) / "model.safetensors", state, {"format": "pt"})
    (Path(folder) / "config.json").write_text(json.dumps(fields, indent=2) + "\n")


def _names(config: T5Config) -> dict[str, str]:
    """Our paths and the names of the same tensors in the state dict."""
    names = dict(NAMES)
    for layer in range(config.depth):
        for ours, theirs in LAYER_NAMES.items():
            names[f"encoder/layers_{layer}/{ours}"] = f"encoder.block.{layer}.{theirs}"
    return names


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFolderError(f"cannot read {path}: {error}") from None


def _read_weights(folder: Path) -> dict[str, np.ndarray]:
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        pickled = folder / "pytorch_model.bin"
        path = folder / "model.safetensors"
        return read_weight_file(path if path.exists() or not pickled.exists() else pickled)
    state: dict[str, np.ndarray] = {}
    for name in sorted(set(_read_json(index)["weight_map"].values())):
        state |= read_safetensors(folder / name)[0]
    return state

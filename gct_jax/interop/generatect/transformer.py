"""PyTorch names and layouts of the building blocks that CT-ViT, MaskGIT and critics share.

Every function takes the reference's flat state dict and a key prefix and returns the parameters
of the Flax module of the same role. Linear weights are [out, in] there and [in, out] here.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from einops import rearrange

from gct_jax.errors import ModelFolderError

State = Mapping[str, np.ndarray]
Params = dict[str, Any]


def tensor(state: State, name: str) -> np.ndarray:
    """One tensor as float32.

    Raises:
      ModelFolderError: the state dict lacks it.
    """
    if name not in state:
        raise ModelFolderError(f"the weights lack the tensor {name!r}")
    return np.asarray(state[name], np.float32)


def require_known(state: State, prefixes: tuple[str, ...]) -> None:
    """Raise ModelFolderError if a tensor of `state` lies under none of the `prefixes`."""
    unknown = sorted(name for name in state if not name.startswith(prefixes))
    if unknown:
        raise ModelFolderError(
            f"the weights hold {len(unknown)} unexpected tensor(s), first {unknown[0]!r}"
        )


def count_indices(state: State, prefix: str) -> int:
    """How many different integers follow `prefix` in the keys: the depth of a stack."""
    return len({key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)})


def dense(state: State, prefix: str, use_bias: bool = True) -> Params:
    """nn.Linear -> nn.Dense."""
    params = {"kernel": tensor(state, f"{prefix}.weight").T}
    if use_bias:
        params["bias"] = tensor(state, f"{prefix}.bias")
    return params


def layer_norm(state: State, prefix: str) -> Params:
    """nn.LayerNorm -> nn.LayerNorm."""
    return {"scale": tensor(state, f"{prefix}.weight"), "bias": tensor(state, f"{prefix}.bias")}


def attention(state: State, prefix: str, cross: bool = False) -> Params:
    """Attention block -> `models.transformer.Attention`.

    Self attention blocks carry an unused context norm and empty null keys, which are dropped;
    `beta` is a buffer of zeros.
    """
    key, value = np.split(tensor(state, f"{prefix}.to_kv.weight"), 2)
    params: Params = {
        "norm": {"scale": tensor(state, f"{prefix}.norm.gamma")},
        "query": dense(state, f"{prefix}.to_q", use_bias=False),
        "key": {"kernel": key.T},
        "value": {"kernel": value.T},
        "out": dense(state, f"{prefix}.to_out", use_bias=False),
        "query_scale": tensor(state, f"{prefix}.q_scale"),
        "key_scale": tensor(state, f"{prefix}.k_scale"),
    }
    if cross:
        # Null keys and values alternate: [heads, (null, key or value), dim_head].
        null = rearrange(tensor(state, f"{prefix}.null_kv"), "h (n kv) d -> kv n h d", kv=2)
        params |= {
            "context_norm": {"scale": tensor(state, f"{prefix}.context_norm.gamma")},
            "null_key": null[0],
            "null_value": null[1],
        }
    return params


def transformer(state: State, prefix: str) -> Params:
    """Transformer stack -> `models.transformer.Transformer`."""
    params: Params = {"norm_out": {"scale": tensor(state, f"{prefix}.norm_out.gamma")}}
    for i in range(count_indices(state, f"{prefix}.layers.")):
        layer = f"{prefix}.layers.{i}"
        value, gate = np.split(tensor(state, f"{layer}.3.1.weight"), 2)
        kernel = rearrange(tensor(state, f"{layer}.0.dsconv.weight"), "d 1 t h w -> t h w d")
        params[f"layers_{i}"] = {
            "peg": {"kernel": kernel, "bias": tensor(state, f"{layer}.0.dsconv.bias")},
            "self_attention": attention(state, f"{layer}.1"),
            "feed_forward": {
                "norm": layer_norm(state, f"{layer}.3.0"),
                "value": {"kernel": value.T},
                "gate": {"kernel": gate.T},
                "out": dense(state, f"{layer}.3.4", use_bias=False),
            },
        }
        if f"{layer}.2.to_q.weight" in state:
            params[f"layers_{i}"]["cross_attention"] = attention(state, f"{layer}.2", cross=True)
    return params


def position_bias(state: State, prefix: str) -> Params:
    """ContinuousPositionBias -> `models.positions.ContinuousPositionBias`."""
    return {
        "hidden_0": dense(state, f"{prefix}.net.0.0"),
        "hidden_1": dense(state, f"{prefix}.net.1.0"),
        "out": dense(state, f"{prefix}.net.2"),
    }

"""PyTorch names and layouts of the building blocks that CT-ViT, MaskGIT and critics share.

Every function takes the path of one of our modules and the reference's prefix of the same module,
and yields the links between them. Linear weights are [out, in] there and [in, out] here.
"""

from collections.abc import Iterator

import numpy as np

from gct_jax.interop.generatect.layout import Idle, Link, link

LINEAR = "o i -> i o"
LINEAR_HALVES = "(part o) i -> part i o"


def dense(ours: str, theirs: str) -> Iterator[Link]:
    """nn.Linear and nn.Dense, with or without bias."""
    yield link(f"{ours}.kernel", f"{theirs}.weight", LINEAR)
    yield link(f"{ours}.bias", f"{theirs}.bias")


def layer_norm(ours: str, theirs: str) -> Iterator[Link]:
    """nn.LayerNorm and group norms."""
    yield link(f"{ours}.scale", f"{theirs}.weight")
    yield link(f"{ours}.bias", f"{theirs}.bias")


def attention(
    ours: str, theirs: str, *, dim: int, heads: int, dim_head: int, context_dim: int | None = None
) -> Iterator[Link | Idle]:
    """Attention block and `models.transformer.Attention`; with `context_dim`, cross attention.

    Self attention blocks of the reference carry an unused context norm and empty null keys; every
    `beta` is a buffer of zeros.
    """
    yield link(f"{ours}.norm.scale", f"{theirs}.norm.gamma")
    yield Idle(f"{theirs}.norm.beta", np.zeros(dim, np.float32))
    yield Idle(f"{theirs}.context_norm.beta", np.zeros(context_dim or dim, np.float32))
    yield from dense(f"{ours}.query", f"{theirs}.to_q")
    key_value = (f"{ours}.key.kernel", f"{ours}.value.kernel")
    yield link(key_value, f"{theirs}.to_kv.weight", LINEAR_HALVES, part=2)
    yield from dense(f"{ours}.out", f"{theirs}.to_out")
    yield link(f"{ours}.query_scale", f"{theirs}.q_scale")
    yield link(f"{ours}.key_scale", f"{theirs}.k_scale")
    if context_dim is None:
        yield Idle(f"{theirs}.context_norm.gamma", np.ones(dim, np.float32))
        yield Idle(f"{theirs}.null_kv", np.zeros((heads, 0, dim_head), np.float32))
        return
    yield link(f"{ours}.context_norm.scale", f"{theirs}.context_norm.gamma")
    # Null keys and values alternate: [heads, (null, key or value), dim_head].
    null = (f"{ours}.null_key", f"{ours}.null_value")
    yield link(null, f"{theirs}.null_kv", "h (n part) d -> part n h d", part=2)


def transformer(
    ours: str,
    theirs: str,
    *,
    dim: int,
    depth: int,
    heads: int,
    dim_head: int,
    context_dim: int | None = None,
) -> Iterator[Link | Idle]:
    """Transformer stack and `models.transformer.Transformer`."""
    size = {"dim": dim, "heads": heads, "dim_head": dim_head}
    for i in range(depth):
        layer, their_layer = f"{ours}.layers_{i}", f"{theirs}.layers.{i}"
        convolution = f"{their_layer}.0.dsconv"
        yield link(f"{layer}.peg.kernel", f"{convolution}.weight", "d 1 t h w -> t h w d")
        yield link(f"{layer}.peg.bias", f"{convolution}.bias")
        yield from attention(f"{layer}.self_attention", f"{their_layer}.1", **size)
        if context_dim is not None:
            cross = f"{layer}.cross_attention"
            yield from attention(cross, f"{their_layer}.2", **size, context_dim=context_dim)
        hidden = (f"{layer}.feed_forward.value.kernel", f"{layer}.feed_forward.gate.kernel")
        yield from layer_norm(f"{layer}.feed_forward.norm", f"{their_layer}.3.0")
        yield link(hidden, f"{their_layer}.3.1.weight", LINEAR_HALVES, part=2)
        yield from dense(f"{layer}.feed_forward.out", f"{their_layer}.3.4")
    yield link(f"{ours}.norm_out.scale", f"{theirs}.norm_out.gamma")
    yield Idle(f"{theirs}.norm_out.beta", np.zeros(dim, np.float32))


def position_bias(ours: str, theirs: str) -> Iterator[Link]:
    """ContinuousPositionBias and `models.positions.ContinuousPositionBias`."""
    yield from dense(f"{ours}.hidden_0", f"{theirs}.net.0.0")
    yield from dense(f"{ours}.hidden_1", f"{theirs}.net.1.0")
    yield from dense(f"{ours}.out", f"{theirs}.net.2")

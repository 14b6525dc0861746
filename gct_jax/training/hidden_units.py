"""Hidden units in whole groups, so that a "tensor" axis divides them.

The published feed-forward layers have floor(8 dim / 3) hidden units, 1365 for a width of 512, which
no device count divides. In training they are padded to a multiple of `MULTIPLE` with units whose
weights are zero, into the layer and out of it:

    F(x) = sum_u W_out[u] (W_value[u] n(x)) gelu(W_gate[u] n(x))                                 (1)

A padded unit adds 0 to (1), and since all three of its weights are 0, so are their gradients: it
stays 0. On disk, and wherever networks are handed on, widths are the published ones.
"""

import re

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

MULTIPLE = 16
# Path pattern -> the axis of hidden units.
HIDDEN = ((r"feed_forward/(value|gate)/kernel$", 1), (r"feed_forward/out/kernel$", 0))


def padded(params: PyTree) -> PyTree:
    """Parameters with hidden units of zero weights up to a multiple of `MULTIPLE`."""

    def pad(path: tuple, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        widths = [(0, 0)] * leaf.ndim
        for pattern, axis in HIDDEN:
            if re.search(pattern, name):
                widths[axis] = (0, -leaf.shape[axis] % MULTIPLE)
        return jnp.pad(leaf, widths) if any(map(any, widths)) else leaf

    return jax.tree_util.tree_map_with_path(pad, params)


def cropped(params: PyTree, published: PyTree) -> PyTree:
    """Parameters, or their shapes, without what `padded` has added.

    published: the same tree, of shapes alone or arrays, with the widths that are handed on.
    """

    def crop(leaf: PyTree, shape: PyTree) -> PyTree:
        if leaf.shape == shape.shape:
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(shape.shape, leaf.dtype)
        return leaf[tuple(map(slice, shape.shape))]

    return jax.tree.map(crop, params, published)

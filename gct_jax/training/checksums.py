"""A number for the content of an array that does not depend on how it lies on devices or hosts.

    c(x) = sum_i  p (b_i xor q i)   mod 2**32                                               (1)

with b_i the bits of element i in row-major order and odd constants p and q. Integers add up to the
same whatever the order, and a change in one element always changes the sum.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

P, Q = 0x85EBCA6B, 0x9E3779B1
UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def checksum(array: jax.Array) -> jax.Array:
    """Equation (1), uint32, of an array of at most four bytes per element."""
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(array, UNSIGNED[array.dtype.itemsize]).astype(jnp.uint32)
    place = jnp.zeros(array.shape, jnp.uint32)
    for axis in range(array.ndim):
        step = np.uint32(np.prod(array.shape[axis + 1 :], dtype=np.int64) % 2**32)
        place += step * jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
    return jnp.sum((bits ^ (np.uint32(Q) * place)) * np.uint32(P), dtype=jnp.uint32)


@jax.jit
def _checksums(arrays: list[jax.Array]) -> jax.Array:
    """Of all of them in one program, which several processes run together."""
    return jnp.stack([checksum(array) for array in arrays])


def tree_checksums(tree: PyTree) -> dict[str, list]:
    """[shape, checksum] of each array of a tree, by its path."""
    return forest_checksums({"": tree})[""]


def forest_checksums(trees: dict[str, PyTree]) -> dict[str, dict[str, list]]:
    """[shape, checksum] of each array of several trees, by tree and path."""
    leaves = {name: jax.tree_util.tree_flatten_with_path(tree)[0] for name, tree in trees.items()}
    arrays = [leaf for found in leaves.values() for _, leaf in found]
    sums = iter(np.asarray(_checksums(arrays)).tolist() if arrays else ())
    return {
        name: {jax.tree_util.keystr(path): [list(leaf.shape), next(sums)] for path, leaf in found}
        for name, found in leaves.items()
    }


def tree_shapes(tree: PyTree) -> dict[str, list[int]]:
    """Shape of each array of a tree, abstract or not, by its path."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): list(leaf.shape) for path, leaf in leaves}

"""A position bias by the relative offset of two tokens on a (time, height, width) grid.

Tokens are in row-major order. Among N = T H W tokens there are N^2 pairs but only

    (2T-1)(2H-1)(2W-1)                                                                  (1)

distinct offsets, so the bias travels as the table of these, and each backend of the attention
expands no more of it at a time than it needs.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jaxtyping import Float

from gct_jax.array_types import Array


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class RelativeBias:
    """Additive bias by offset (query minus key).

    table: [heads, 2T-1, 2H-1, 2W-1] float32; entry [h, T-1+a, H-1+b, W-1+c] belongs to (a, b, c).
    grid: (T, H, W), the extent of the token grid.
    tiles: what `gct_jax.kernels.flash.with_tiles` makes of the table, for layers that share it.
    """

    table: Float[Array, "heads times rows columns"]
    grid: tuple[int, int, int]
    tiles: Float[Array, "heads offsets keys queries"] | None = None

    def tree_flatten(self) -> tuple[tuple, tuple[int, int, int]]:
        """The arrays, or what JAX has put in their place, and what stays."""
        return (self.table, self.tiles), self.grid

    @classmethod
    def tree_unflatten(cls, grid: tuple[int, int, int], children: tuple) -> "RelativeBias":
        """Without a check, because JAX puts all kinds of things into the leaves of a tree."""
        bias = object.__new__(cls)
        object.__setattr__(bias, "table", children[0])
        object.__setattr__(bias, "grid", grid)
        object.__setattr__(bias, "tiles", children[1])
        return bias


def bias_matrix(bias: RelativeBias) -> Float[Array, "heads tokens tokens"]:
    """The bias of every token pair, [heads, T*H*W queries, T*H*W keys]."""
    return expand_frames(expand_rows(bias.table))


def toeplitz(table: jax.Array, axis: int) -> jax.Array:
    """Replace an axis of 2n-1 offsets by two axes (query, key) of extent n.

    Built from n shifted slices: a gather's transpose, a scatter, is slow on every device.
    """
    n = (table.shape[axis] + 1) // 2
    descending = jnp.flip(table, axis)
    rows = [lax.slice_in_dim(descending, n - 1 - i, 2 * n - 1 - i, axis=axis) for i in range(n)]
    return jnp.stack(rows, axis)


def expand_rows(table: jax.Array) -> jax.Array:
    """[heads, offsets, 2H-1, 2W-1] -> [heads, offsets, H*W queries, H*W keys]."""
    pairs = toeplitz(toeplitz(table, 3), 2)  # [heads, offsets, H, H', W, W']
    return rearrange(pairs, "h t i j k l -> h t (i k) (j l)")


def expand_frames(rows: jax.Array) -> jax.Array:
    """[heads, 2T-1, H*W, H*W] -> [heads, T*H*W, T*H*W]."""
    return rearrange(toeplitz(rows, 1), "h s t q k -> h (s q) (t k)")


def tokens_per_chunk(bias: RelativeBias, chunk_tokens: int) -> int:
    """Queries of one chunk of `bias_tiles`, at least `chunk_tokens` if there are as many."""
    _, (_, height, width), together = _by_frame(bias, chunk_tokens)
    return together * height * width


def bias_tiles(bias: RelativeBias, chunk_tokens: int) -> Callable[[jax.Array], list[jax.Array]]:
    """The bias of one chunk of queries after the other.

    The bias of a frame of queries depends on the difference of frames alone: for each next frame it
    is that of the last, moved on by a frame. So it is written out once, for all 2T-1 differences,
    and a chunk's part is a window of that.

    Args:
      chunk_tokens: a chunk holds whole frames, as few as have that many tokens; of a single frame,
        whole rows.

    Returns:
      Function from the number of a chunk to its bias, for each head [queries, keys].
    """
    table, (frames, _, _), together = _by_frame(bias, chunk_tokens)
    strips = [lax.stop_gradient(_strip(one, together)) for one in table]

    def tiles(chunk: jax.Array) -> list[jax.Array]:
        first = chunk * together
        return [
            _window(one, strip, first, frames, together)
            for one, strip in zip(table, strips, strict=True)
        ]

    return tiles


def _by_frame(bias: RelativeBias, chunk_tokens: int) -> tuple[jax.Array, tuple[int, int, int], int]:
    """Table and grid, and the frames in a chunk; a single frame is walked row by row."""
    table, (frames, height, width) = bias.table, bias.grid
    if frames == 1:  # the same offsets, axes swapped
        table, (frames, height, width) = jnp.swapaxes(table, 1, 2), (height, 1, width)
    return table, (frames, height, width), min(frames, -(-chunk_tokens // (height * width)))


def _strip(table: jax.Array, together: int) -> jax.Array:
    """[2T-1, 2H-1, 2W-1] -> [together * H*W, (2T-1) * H*W], a window of which is the bias of that
    many frames of queries; what is outside of the table is 0."""
    strip = _by_key_frame(table)
    tokens, length = strip.shape
    strip = jnp.pad(strip, ((0, 0), ((together - 1) * tokens, 0)))
    starts = [(together - 1 - i) * tokens for i in range(together)]
    return jnp.concatenate(
        [lax.slice_in_dim(strip, start, start + length, axis=1) for start in starts]
    )


def _by_key_frame(table: jax.Array) -> jax.Array:
    """[offsets, 2H-1, 2W-1] -> [H*W queries, offsets * H*W keys], the key frames in ascending
    order: the offset is query minus key."""
    rows = jnp.flip(expand_rows(table[None])[0], axis=0)  # [key frame, H*W, H*W]
    return rearrange(rows, "t q k -> q (t k)")


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _window(
    table: jax.Array, strip: jax.Array, first: jax.Array, frames: int, together: int
) -> jax.Array:
    """Bias of the frames first ... first + together - 1 of queries, [together * H*W, T*H*W]."""
    tokens = strip.shape[0] // together
    return lax.dynamic_slice_in_dim(strip, (frames - 1 - first) * tokens, frames * tokens, axis=1)


def _window_forward(table, strip, first, frames, together):
    return _window(table, strip, first, frames, together), (table, first)


def _window_backward(frames, together, saved, gradient):
    # Past the strip to the table: the strip's gradient would be as large as itself at each chunk.
    table, first = saved
    height, width = ((size + 1) // 2 for size in table.shape[1:])

    def frame_bias(table, frame):
        return _by_key_frame(lax.dynamic_slice_in_dim(table, frame, frames, axis=0))

    total = jnp.zeros_like(table)
    for i in range(together):
        part = gradient[i * height * width : (i + 1) * height * width]
        (one,) = jax.linear_transpose(lambda t, i=i: frame_bias(t, first + i), table)(part)
        total += one
    return total, None, None


_window.defvjp(_window_forward, _window_backward)

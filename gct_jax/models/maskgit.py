"""MaskGIT: a bidirectional transformer that predicts masked tokens of a CT volume from text.

The transformer of Chang et al. 2022 ("MaskGIT") on a 3D token grid, as in GenerateCT:

    x = token_table[id] + position_table[row-major position]                            (1)
    logits = W transformer(x, text) + b                                                 (2)

Self attention spans all tokens with a 3D continuous position bias shared by the layers; cross
attention reads the text. An id equal to `num_tokens` means "masked".
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from gct_jax.array_types import Logits, Text, TextMask, TokenIds, TokenMask, Tokens
from gct_jax.errors import InputError
from gct_jax.kernels.linear import matrix_product
from gct_jax.models.positions import ContinuousPositionBias
from gct_jax.models.transformer import KeysValues, Transformer


class TokenEmbedding(nn.Module):
    """Equation (1): learned tables for tokens (one row more, for "masked") and positions.

    Attributes:
      num_tokens: size of the codebook.
      max_sequence_length: positions that have an embedding.
      dim: width of the tokens.
      dtype: computation type; norms and softmax stay float32.
    """

    num_tokens: int = 8192
    max_sequence_length: int = 10000
    dim: int = 512
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, ids: TokenIds) -> Tokens:
        """int32 [batch, time, height, width] -> [batch, time, height, width, dim].

        Raises:
          InputError: the grid has more tokens than the position table has rows.
        """
        _, *grid = ids.shape
        length = grid[0] * grid[1] * grid[2]
        if length > self.max_sequence_length:
            raise InputError(
                f"a {grid[0]}x{grid[1]}x{grid[2]} grid has {length} tokens, "
                f"more than max_sequence_length = {self.max_sequence_length}"
            )
        tokens = nn.Embed(
            self.num_tokens + 1,
            self.dim,
            embedding_init=nn.initializers.normal(0.02),
            dtype=self.dtype,
            name="token",
        )(ids)
        positions = self.param(
            "position", nn.initializers.normal(0.02), (self.max_sequence_length, self.dim)
        )
        return tokens + positions[:length].astype(self.dtype).reshape(*grid, self.dim)


def scale_gradient(x: jax.Array, factor: float) -> jax.Array:
    """The value of `x` with its gradient multiplied by `factor`."""
    fixed = lax.stop_gradient(x)
    return fixed + factor * (x - fixed)


class MaskGit(nn.Module):
    """Text-conditioned predictor of masked tokens.

    Attributes:
      num_tokens: size of the codebook; also the id of a masked token.
      max_sequence_length: rows of the position table, the largest usable number of tokens.
      dim, depth, heads, dim_head: of the transformer; `dim_head` is the width of the bias MLP too.
      context_dim: width of the text embeddings, None for an unconditional model.
      ff_dim: hidden units of the feed-forward layers; None for floor(8 dim / 3).
      scale_gradient: factor on the gradient of the embeddings; the published model used 0.1.
      mask_peg: see `Transformer`; the published program hides padding from attention alone.
      backend: of the attention, see `gct_jax.kernels.attention.attention`.
      remat: of the transformer's layers, see `Transformer`.
      dtype: computation type; parameters and logits are float32.
    """

    num_tokens: int = 8192
    max_sequence_length: int = 10000
    dim: int = 512
    depth: int = 6
    heads: int = 8
    dim_head: int = 64
    context_dim: int | None = 768
    ff_dim: int | None = None
    scale_gradient: float = 1.0
    mask_peg: bool = True
    backend: str = "auto"
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    def setup(self):
        """Submodules, shared by `embed` and `__call__`."""
        self.embedding = TokenEmbedding(
            self.num_tokens, self.max_sequence_length, self.dim, self.dtype
        )
        self.position_bias = ContinuousPositionBias(self.dim_head, self.heads, grid_dims=3)
        self.transformer = Transformer(
            dim=self.dim,
            depth=self.depth,
            heads=self.heads,
            dim_head=self.dim_head,
            context_dim=self.context_dim,
            attend="all",
            causal_peg=False,
            backend=self.backend,
            ff_dim=self.ff_dim,
            mask_peg=self.mask_peg,
            remat=self.remat,
            dtype=self.dtype,
        )
        self.to_logits = nn.Dense(
            self.num_tokens,
            dtype=self.dtype,
            dot_general=functools.partial(matrix_product, preferred_element_type=jnp.float32),
        )

    def embed(
        self,
        ids: TokenIds,
        context: Text | Sequence[KeysValues] | None = None,
        context_mask: TextMask | None = None,
        token_mask: TokenMask | None = None,
    ) -> Tokens:
        """The transformer's output, [batch, time, height, width, dim]. Arguments as `__call__`."""
        x = self.embedding(ids)
        if self.scale_gradient != 1:
            x = scale_gradient(x, self.scale_gradient)
        _, time, height, width = ids.shape
        bias = self.position_bias((time, height, width))
        return self.transformer(x, bias, context, context_mask, token_mask)

    def context_keys(self, context: Text) -> tuple[KeysValues, ...]:
        """Text embeddings [batch, length, context_dim] -> each layer's keys and values of them."""
        return self.transformer.context_keys(context)

    def __call__(
        self,
        ids: TokenIds,
        context: Text | Sequence[KeysValues] | None = None,
        context_mask: TextMask | None = None,
        token_mask: TokenMask | None = None,
    ) -> Logits:
        """Equation (2).

        Args:
          ids: int32 [batch, time, height, width], masked tokens as `num_tokens`.
          context: text embeddings [batch, length, context_dim], or what `context_keys` made of
            them, which saves steps that share the text its projections. None skips cross attention
            altogether, which is another function than the null branch of guidance.
          context_mask: bool [batch, length]; None means all valid. A row of False is the null
            branch: cross attention then sees its learned null keys only.
          token_mask: bool [batch, time, height, width]; False hides padding.

        Returns:
          logits, float32 [batch, time, height, width, num_tokens].
        """
        return self.to_logits(self.embed(ids, context, context_mask, token_mask))

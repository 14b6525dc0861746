"""Critics: which of the tokens are not the true ones (Lezama et al. 2022, "Token-Critic").

Both return one logit per token, high where the token looks sampled. `TokenCritic` is a model of
its own; `SelfCritic` reads the hidden states of a MaskGIT.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike

from gct_jax.array_types import PerToken, Text, TextMask, TokenIds, TokenMask
from gct_jax.models.maskgit import MaskGit, TokenEmbedding
from gct_jax.models.transformer import Transformer


class TokenCritic(nn.Module):
    """A critic with its own embeddings and transformer, without a position bias.

    Attributes: as `gct_jax.models.maskgit.MaskGit`.
      num_tokens: size of the codebook.
      max_sequence_length: positions that have an embedding.
      dim: width of the tokens.
      depth: number of layers.
      heads: attention heads.
      dim_head: width of a head.
      context_dim: width of the text embedding; None: no text.
      ff_dim: hidden units of the feed-forward layers; None: floor(8 dim / 3).
      mask_peg: see `Transformer`.
      backend: see `gct_jax.kernels.attention.attention`.
      remat: the backward pass computes each layer again instead of keeping it.
      dtype: computation type; norms and softmax stay float32.
    """

    num_tokens: int = 8192
    max_sequence_length: int = 10000
    dim: int = 512
    depth: int = 6
    heads: int = 8
    dim_head: int = 64
    context_dim: int | None = 768
    ff_dim: int | None = None
    mask_peg: bool = True
    backend: str = "auto"
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        ids: TokenIds,
        context: Text | None = None,
        context_mask: TextMask | None = None,
        token_mask: TokenMask | None = None,
    ) -> PerToken:
        """Arguments as `MaskGit.__call__` -> float32 [batch, time, height, width]."""
        x = TokenEmbedding(
            self.num_tokens, self.max_sequence_length, self.dim, self.dtype, name="embedding"
        )(ids)
        x = Transformer(
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
            name="transformer",
        )(x, None, context, context_mask, token_mask)
        return rearrange(nn.Dense(1, name="to_score")(x), "b t h w 1 -> b t h w")


class SelfCritic(nn.Module):
    """A linear score on the hidden states of `maskgit`, whose parameters it shares.

    Its parameters are {"maskgit": those of the MaskGit, "to_score": ..}; the logits layer of the
    MaskGit may be among them but is not used.
    """

    maskgit: MaskGit = dataclasses.field(default_factory=MaskGit)

    @nn.compact
    def __call__(
        self,
        ids: TokenIds,
        context: Text | None = None,
        context_mask: TextMask | None = None,
        token_mask: TokenMask | None = None,
    ) -> PerToken:
        """Arguments as `MaskGit.__call__` -> float32 [batch, time, height, width]."""
        x = self.maskgit.embed(ids, context, context_mask, token_mask)
        return rearrange(nn.Dense(1, name="to_score")(x), "b t h w 1 -> b t h w")

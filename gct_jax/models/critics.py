"""Critics: which of the tokens shown are not the true ones (Lezama et al. 2022, "Token-Critic").

Both return one logit per token, high where the token looks sampled. `TokenCritic` is a model of
its own; `SelfCritic` reads the hidden states of a MaskGIT.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from gct_jax.models.maskgit import MaskGit, TokenEmbedding
from gct_jax.models.transformer import Transformer


class TokenCritic(nn.Module):
    """A critic with its own embeddings and transformer, without a position bias.

    Attributes: as `gct_jax.models.maskgit.MaskGit`.
    """

    num_tokens: int
    max_sequence_length: int
    dim: int
    depth: int
    heads: int
    dim_head: int
    context_dim: int | None = None
    ff_dim: int | None = None
    backend: str = "auto"
    recompute: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        ids: jax.Array,
        context: jax.Array | None = None,
        context_mask: jax.Array | None = None,
        token_mask: jax.Array | None = None,
    ) -> jax.Array:
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
            recompute=self.recompute,
            dtype=self.dtype,
            name="transformer",
        )(x, None, context, context_mask, token_mask)
        return rearrange(nn.Dense(1, name="to_score")(x), "b t h w 1 -> b t h w")


class SelfCritic(nn.Module):
    """A linear score on the hidden states of `maskgit`, whose parameters it shares.

    Its parameters are {"maskgit": those of the MaskGit, "to_score": ..}; the logits layer of the
    MaskGit may be among them but is not used.
    """

    maskgit: MaskGit

    @nn.compact
    def __call__(
        self,
        ids: jax.Array,
        context: jax.Array | None = None,
        context_mask: jax.Array | None = None,
        token_mask: jax.Array | None = None,
    ) -> jax.Array:
        """Arguments as `MaskGit.__call__` -> float32 [batch, time, height, width]."""
        x = self.maskgit.embed(ids, context, context_mask, token_mask)
        return rearrange(nn.Dense(1, name="to_score")(x), "b t h w 1 -> b t h w")

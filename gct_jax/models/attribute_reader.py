"""Reads attributes of a report out of its text embeddings; used to train the text encoder only.

With y_j the embedding of text position j, attribute a has a query q_a and a classifier W_a:

    w_aj   = softmax over j of q_a . LN(y_j) / sqrt(d)                                     (1)
    logits = W_a sum_j w_aj y_j                                                            (2)
"""

import flax.linen as nn
import jax
import jax.numpy as jnp


class AttributeReader(nn.Module):
    """Equations (1), (2).

    Attributes:
      attributes: number of attributes.
      classes: values of an attribute; one that has fewer leaves the rest unused.
    """

    attributes: int
    classes: int

    @nn.compact
    def __call__(self, text: jax.Array, text_mask: jax.Array) -> jax.Array:
        """Class logits of every attribute.

        Args:
          text: float32 [batch, length, dim].
          text_mask: bool [batch, length], True at words.

        Returns:
          float32 [batch, attributes, classes].
        """
        dim = text.shape[-1]
        init = nn.initializers.normal(dim**-0.5)
        query = self.param("queries", init, (self.attributes, dim))
        classifier = self.param("classifiers", init, (self.attributes, dim, self.classes))
        text = nn.LayerNorm(use_fast_variance=False, name="norm")(text)
        scores = jnp.einsum("ad,bld->bal", query, text) * dim**-0.5
        scores = jnp.where(text_mask[:, None, :], scores, jnp.finfo(jnp.float32).min)
        read = jnp.einsum("bal,bld->bad", jax.nn.softmax(scores, -1), text)
        return jnp.einsum("bad,adc->bac", read, classifier)

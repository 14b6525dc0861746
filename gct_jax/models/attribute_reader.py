"""Reads attributes of a report out of its text embeddings; used to train the text encoder only.

With y_j the embeddings of the words of a text, u_ac the unit vector of class c of attribute a and
q_a its unit query, each attribute is read twice, without attention and with it:

    mean_ac     = u_ac . mean over j of y_j                                                (1)
    attended_ac = u_ac . sum over j of softmax_j(q_a . y_j) y_j                            (2)

(1), because attention that has not learnt where to look yet sees just the mean; (2), because a
mean of fifty words has no room for who is left and who is right of many findings, and the words of
a finding do. Unit vectors, because longer ones would make up for differences too faint for another
network to notice.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from gct_jax.array_types import Array, Text, TextMask


class AttributeReader(nn.Module):
    """Equations (1) and (2).

    Attributes:
      attributes: number of attributes.
      classes: values of an attribute; one that has fewer leaves the rest unused.
    """

    attributes: int = 1
    classes: int = 2

    @nn.compact
    def __call__(
        self, text: Text, text_mask: TextMask
    ) -> tuple[Float[Array, "batch attributes classes"], Float[Array, "batch attributes classes"]]:
        """Class logits of every attribute, read from the mean and by attention.

        Args:
          text: float32 [batch, length, dim].
          text_mask: bool [batch, length], True at words.

        Returns:
          Two float32 [batch, attributes, classes].
        """
        dim, normal = text.shape[-1], nn.initializers.normal(1.0)
        classifiers = self.param("classifiers", normal, (self.attributes, self.classes, dim))
        classifiers /= jnp.linalg.norm(classifiers, axis=-1, keepdims=True)
        queries = self.param("queries", normal, (self.attributes, dim))
        queries /= jnp.linalg.norm(queries, axis=-1, keepdims=True)

        words = text_mask[..., None]
        mean = jnp.sum(text, axis=1, where=words) / jnp.maximum(words.sum(1), 1)  # [batch, dim]
        logits = jnp.einsum("ad,bjd->baj", queries, text)
        shares = jax.nn.softmax(logits, axis=-1, where=text_mask[:, None])
        attended = jnp.einsum("baj,bjd->bad", shares, text)  # [batch, attributes, dim]
        return (
            jnp.einsum("acd,bd->bac", classifiers, mean),
            jnp.einsum("acd,bad->bac", classifiers, attended),
        )

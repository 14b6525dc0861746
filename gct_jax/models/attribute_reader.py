"""Reads attributes of a report out of its text embeddings; used to train the text encoder only.

With y_j the embeddings of the words of a text and u_ac the unit vector of class c of attribute a:

    logits_ac = u_ac . mean over j of y_j                                                  (1)

The mean, because attention that has not learnt where to look yet sees just that; unit vectors,
because longer ones would make up for differences too faint for another network to notice.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp


class AttributeReader(nn.Module):
    """Equation (1).

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
        shape = (self.attributes, self.classes, text.shape[-1])
        classifiers = self.param("classifiers", nn.initializers.normal(1.0), shape)
        classifiers /= jnp.linalg.norm(classifiers, axis=-1, keepdims=True)
        words = text_mask[..., None]
        mean = jnp.sum(text, axis=1, where=words) / jnp.maximum(words.sum(1), 1)  # [batch, dim]
        return jnp.einsum("acd,bd->bac", classifiers, mean)

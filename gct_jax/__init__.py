"""gct_jax: text to 3D chest CT in JAX."""

__version__ = "0.1.0"

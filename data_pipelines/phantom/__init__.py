"""A procedural chest CT: seeded patients, their 18 possible findings, and a JAX renderer."""

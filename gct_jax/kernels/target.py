"""What a program is traced for."""

import jax


def target_platform() -> str:
    """ "cpu", "gpu" or "tpu". Under a mesh its devices count: they may be elsewhere."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.default_backend() if mesh.empty else mesh.abstract_device.platform

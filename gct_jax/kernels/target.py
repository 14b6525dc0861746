"""What a program is traced for: the one place that knows the platform."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax

from gct_jax.errors import ConfigError

PLATFORMS = ("cpu", "gpu", "tpu")
_stated: ContextVar[str | None] = ContextVar("stated_platform", default=None)


def target_platform() -> str:
    """ "cpu", "gpu" or "tpu": what `tracing_for` says, or else the platform of the mesh, whose
    devices may be elsewhere, or else that of this process."""
    stated = _stated.get()
    if stated is not None:
        return stated
    mesh = jax.sharding.get_abstract_mesh()
    return jax.default_backend() if mesh.empty else mesh.abstract_device.platform


@contextlib.contextmanager
def tracing_for(platform: str) -> Iterator[None]:
    """Within it programs are traced for this platform, as an export does for another machine.

    JAX keeps what it has traced: the functions to be traced must be new to `jax.jit`.

    Raises:
      ConfigError: an unknown platform.
    """
    if platform not in PLATFORMS:
        raise ConfigError(f"platform {platform!r} is none of {', '.join(PLATFORMS)}")
    token = _stated.set(platform)
    try:
        yield
    finally:
        _stated.reset(token)

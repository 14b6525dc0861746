"""What to do where a kernel with a backward pass of its own is differentiated in forward mode."""

import contextlib
from collections.abc import Iterator

from gct_jax.errors import ConfigError


@contextlib.contextmanager
def reverse_mode_only(what: str, instead: str) -> Iterator[None]:
    """JAX's error of `jvp` and `jacfwd` in the body, with the option that gives both modes.

    JAX refuses a function within `jit` only after the body has ended, in its own words.

    Raises:
      ConfigError: the body was differentiated in forward mode.
    """
    try:
        yield
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise ConfigError(f"{what} has reverse mode only; {instead} gives jvp too") from error

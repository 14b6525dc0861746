"""Settings of JAX that decide numbers, fixed for a command and told where the environment differs.

The environment may choose the devices, never what a seed means: 64-bit mode, another generator or
other rules of promotion would silently make another volume, or none.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import jax

from gct_jax.errors import ConfigError
from gct_jax.random_keys import GENERATOR

SETTINGS: dict[str, Any] = {
    "jax_enable_x64": False,
    "jax_default_prng_impl": GENERATOR,
    "jax_threefry_partitionable": True,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
}


def fix_numerics(program: str) -> None:
    """Give every setting of `SETTINGS` its value; on stderr, name those that the environment had
    changed."""
    for name, value in SETTINGS.items():
        found = jax.config.values[name]
        if found != value:
            jax.config.update(name, value)
            print(
                f"{program}: note: {name.upper()}={found} is not used here: it would change what a "
                f"seed means; computing with {value}",
                file=sys.stderr,
            )


@contextlib.contextmanager
def fixed_numerics() -> Iterator[None]:
    """The same for the body alone, for functions that are called from other programs."""
    with contextlib.ExitStack() as stack:
        for name, value in SETTINGS.items():
            stack.enter_context(getattr(jax, name.removeprefix("jax_"))(value))
        yield


def require_devices() -> None:
    """Raise ConfigError unless JAX finds a device to compute on."""
    asked = os.environ.get("JAX_PLATFORMS", "")
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # a bare AssertionError for cuda without a GPU
        reason = str(error).partition("\n")[0].partition(" (set JAX_PLATFORMS")[0]
        where = f"JAX_PLATFORMS={asked}: " if asked else ""
        raise ConfigError(
            f"{where}no such device can be used here{f' ({reason})' if reason else ''}; "
            "unset JAX_PLATFORMS, or install the extra for it (gct_jax[cuda], gct_jax[tpu])"
        ) from None


def prepare_jax(program: str) -> None:
    """What every command does before it computes: fixed numerics, a device, kept programs."""
    from gct_jax.runtime.compilation_cache import enable_compilation_cache

    fix_numerics(program)
    require_devices()
    enable_compilation_cache()

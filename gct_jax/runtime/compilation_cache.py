"""Compiled programs are kept between runs, so that the second run starts at once."""

import contextlib
import os
from pathlib import Path

import jax


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/gct_jax`, by default `~/.cache/gct_jax`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gct_jax"


def enable_compilation_cache() -> None:
    """Let JAX keep compiled programs in `cache_folder()`.

    `JAX_COMPILATION_CACHE_DIR` has precedence. Where no folder can be made nothing is kept.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    with contextlib.suppress(OSError, RuntimeError):  # read-only, or a user without a home
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

"""What the entry points need beyond the core, as a line that says what to install."""

import importlib.util

from gct_jax.errors import ConfigError

# The modules of each extra of pyproject.toml that an entry point asks for.
MODULES = {
    "train": ("optax", "orbax", "tensorboardX", "filelock"),
    "data": ("tensorflow", "tensorflow_datasets", "importlib_resources", "zstandard", "matplotlib"),
    "evaluate": ("skimage", "matplotlib"),
    "benchmark": ("psutil", "matplotlib", "optax", "orbax", "tensorboardX", "filelock"),
    "tpu": ("libtpu",),
}


def require_extras(*extras: str) -> None:
    """Raise ConfigError unless the modules of `extras` can be imported."""
    needed = dict.fromkeys(module for extra in extras for module in MODULES[extra])
    missing = [module for module in needed if importlib.util.find_spec(module) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise ConfigError(
            f"{', '.join(missing)} {verb} missing; pip install -e '.[{','.join(extras)}]'"
        )

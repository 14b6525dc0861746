"""gct_jax: text to 3D chest CT in JAX.

The names below are the public face; `import gct_jax` alone loads neither JAX nor Flax.

    import gct_jax

    model = gct_jax.load_model()  # the demo model, or load_model("folder")
    (ct,) = gct_jax.generate(model, ["58 years old female: Cardiomegaly."], seeds=[0])
    ct.save("out")
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "CT",
    "Model",
    "__version__",
    "decode",
    "demo_folder",
    "encode",
    "generate",
    "load_model",
    "save_model",
    "super_resolve",
]

if TYPE_CHECKING:
    from gct_jax.generation import generate
    from gct_jax.model_folder import Model, demo_folder, load_model, save_model
    from gct_jax.reconstruction import decode, encode, super_resolve
    from gct_jax.volumes.ct import CT

_HOMES = {
    "CT": "gct_jax.volumes.ct",
    "Model": "gct_jax.model_folder",
    "decode": "gct_jax.reconstruction",
    "demo_folder": "gct_jax.model_folder",
    "encode": "gct_jax.reconstruction",
    "generate": "gct_jax.generation",
    "load_model": "gct_jax.model_folder",
    "save_model": "gct_jax.model_folder",
    "super_resolve": "gct_jax.reconstruction",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gct_jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

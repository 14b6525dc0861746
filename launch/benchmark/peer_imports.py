"""Imports of the peers, with stand-ins for what they import and nobody here uses.

Their own dependencies (hubs of text encoders, video, augmentation, trainers) would bring another
torch; so they are installed with `pip install --no-deps -r tests/peers.txt`.
"""

import contextlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from typing import Any

TEXT_WIDTH = 768  # of the text encoder that the packages name by default
TEXT_ENCODER: dict[str, Any] = {
    "t5_encode_text": None,
    "get_encoded_dim": lambda name: TEXT_WIDTH,
    "DEFAULT_T5_NAME": "",
}
STAND_INS: dict[str, dict[str, dict[str, Any]]] = {
    "phenaki_pytorch": {"torchvision": {}, "phenaki_pytorch.t5": TEXT_ENCODER},
    "imagen_pytorch": {
        "imagen_pytorch.t5": TEXT_ENCODER,
        "imagen_pytorch.imagen_video": {
            "Unet3D": type("Unet3D", (), {}),
            "resize_video_to": None,
            "scale_video_time": None,
        },
        "torchvision": {},
        "torchvision.transforms": {},
        "kornia": {},
        "kornia.augmentation": {},
    },
}


@contextlib.contextmanager
def peer_module(package: str) -> Iterator[Any]:
    """The module `<package>.<package>`; afterwards no stand-in is left where others would find it.

    Args:
      package: a key of `STAND_INS`.

    Raises:
      ModuleNotFoundError: it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is not installed; see tests/peers.txt")
    root = types.ModuleType(package)  # so that its __init__, which imports trainers, does not run
    root.__path__ = list(spec.submodule_search_locations)
    modules = {package: root}
    for path, content in STAND_INS[package].items():
        modules[path] = types.ModuleType(path)
        vars(modules[path]).update(content)
        parent, _, child = path.rpartition(".")
        if parent in modules:
            setattr(modules[parent], child, modules[path])
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield importlib.import_module(f"{package}.{package}")
    finally:
        for name in [name for name in sys.modules if name.startswith(f"{package}.")]:
            del sys.modules[name]
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module

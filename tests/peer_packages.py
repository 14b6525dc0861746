"""Helpers for tests against PyTorch packages that compute what the reference computes.

`launch.benchmark.peer_imports` imports them; tests/peers.txt says how they are installed.
"""

import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest


def require(*packages: str) -> list[pytest.MarkDecorator]:
    """Marks of a module of tests: the group "peers", skipped where a package is missing."""
    missing = [name for name in ("torch", *packages) if importlib.util.find_spec(name) is None]
    reason = f"{', '.join(missing)} not installed; see tests/peers.txt"
    return [
        pytest.mark.peers,
        pytest.mark.skipif(bool(missing), reason=reason),
        pytest.mark.filterwarnings("ignore"),
    ]


def fill_randomly(module: Any, seed: int) -> None:
    """Weights at which every part of a network matters, unlike those of initialisation."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim == 1 or name.endswith((".g", "bias")):
                value.copy_((0 if name.endswith("bias") else 1) + 0.2 * noise)
            else:
                value.copy_(noise / max(1, value[0].numel()) ** 0.5)


def state_of(module: Any) -> dict[str, np.ndarray]:
    """State dict as NumPy arrays."""
    return {name: value.detach().numpy().copy() for name, value in module.state_dict().items()}


def assert_restored(module: Any, state: Mapping[str, np.ndarray]) -> None:
    """`state` is, bit for bit, what `module` holds, and the module loads it strictly."""
    import torch

    original = state_of(module)
    assert original.keys() == state.keys()
    for name, value in original.items():
        np.testing.assert_array_equal(state[name], value, err_msg=name, strict=True)
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
    module.load_state_dict(tensors, strict=True)

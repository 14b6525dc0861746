"""One recorded case of the PyTorch reference, with images turned channel-last."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import load_file

from gct_jax.config import module_fields
from gct_jax.interop.generatect.unet import unet_from_reference
from gct_jax.models.unet import UNet

FOLDER = Path(__file__).parent / "golden"

# Programs that run a few times on tiny inputs: halves the time to compile them.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class GoldenCase:
    """Arrays and tolerances of `<name>.npz` and `<name>.json`."""

    def __init__(self, name):
        self.meta = json.loads((FOLDER / f"{name}.json").read_text())
        with np.load(FOLDER / f"{name}.npz") as arrays:
            self.arrays = dict(arrays)

    def weights(self):
        """State dict of the case's one weight file."""
        (name,) = [f for f in self.meta["weight_files"] if f.endswith(".safetensors")]
        return load_file(FOLDER / name)

    def inputs(self, *names):
        """The named inputs, four- and five-axis ones with their channel axis moved last."""
        return [self._channel_last(self.arrays[f"in__{name}"]) for name in names]

    def output(self, name):
        return self._channel_last(self.arrays[f"out__{name}"])

    def tolerance(self, name):
        """Fair absolute tolerance: 5e-5, or the rounding sensitivity where that is larger."""
        return max(5e-5, self.meta.get("rounding_sensitivity", {}).get(name, 0.0))

    def check(self, name, actual, rtol=0.0):
        """Assert that `actual` equals output `name` within its tolerance."""
        expected = self.output(name)
        assert actual.shape == expected.shape, f"{name}: {actual.shape} != {expected.shape}"
        np.testing.assert_allclose(actual, expected, rtol=rtol, atol=self.tolerance(name))

    @staticmethod
    def _channel_last(array):
        return np.moveaxis(array, -3, -1) if array.ndim >= 4 else array


def load_unet(case, prefix=""):
    """U-Net of a case as a function of (x, log_snr, **conditions) whose weights are arguments."""
    weights = {
        name.removeprefix(prefix): value
        for name, value in case.weights().items()
        if name.startswith(prefix)
    }
    config, variables = unet_from_reference(weights)
    return jax.tree_util.Partial(UNet(**module_fields(config)).apply, variables)

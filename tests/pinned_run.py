"""Runs whose results were recorded once, so that no change of a wire between tested parts passes.

What is recorded proves nothing by itself: the parts are held by golden arrays and properties. To
record anew after a change that is meant to change results: `GCT_JAX_PIN=1 pytest tests -k pinned`.
"""

import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

FOLDER = Path(__file__).parent / "pinned"
# The softmax does not see what is added to all logits alike, so these have a gradient that is zero
# but for rounding, which Adam turns into steps of any direction.
WITHOUT_GRADIENT = ("bias']['out']['bias']", "['position']['bias']")


def summary(tree: Any) -> dict[str, list[float]]:
    """Of each array its projection onto fixed random numbers, which any change of an entry or of
    the order changes, and its root mean square."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    found = {}
    for path, leaf in leaves:
        values = np.asarray(leaf, np.float64).ravel()
        weights = np.random.default_rng(0).normal(size=values.size)
        projection = float(values @ weights) / values.size**0.5
        found[jax.tree_util.keystr(path)] = [projection, float(np.sqrt(np.mean(values**2)))]
    return found


def check(name: str, results: dict[str, dict[str, Any]], tolerance: float = 0.02) -> None:
    """Compare with tests/pinned/<name>.json.

    Args:
      results: numbers or lists of numbers by name, in groups. A list is compared in units of its
        largest entry, a number of itself.
      tolerance: processors sum in different orders, and Adam's first steps amplify that.
    """
    path = FOLDER / f"{name}.json"
    results = json.loads(json.dumps(results, default=float))
    if "GCT_JAX_PIN" in os.environ:
        rounded = json.loads(
            json.dumps(results), parse_float=lambda text: float(f"{float(text):.7g}")
        )
        lines = [f"{json.dumps(group)}: {json.dumps(values)}" for group, values in rounded.items()]
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    expected = json.loads(path.read_text())
    names = [{group: list(v) for group, v in found.items()} for found in (results, expected)]
    assert names[0] == names[1]
    misses = []
    for group, values in expected.items():
        for key, value in values.items():
            if any(pattern in key for pattern in WITHOUT_GRADIENT):
                continue
            scale = float(np.max(np.abs(value))) if np.size(value) else 0.0
            difference = np.max(np.abs(np.subtract(results[group][key], value)), initial=0.0)
            if not difference <= tolerance * scale + 1e-7:
                misses.append(f"{group} {key}: {results[group][key]} instead of {value}")
    assert not misses, f"{name}\n" + "\n".join(misses)

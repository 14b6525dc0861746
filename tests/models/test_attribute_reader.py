"""The reader of report attributes against its equations in NumPy."""

import jax
import numpy as np

from gct_jax.models.attribute_reader import AttributeReader


def test_readings_follow_their_equations_and_skip_padding():
    rng = np.random.default_rng(0)
    text = rng.normal(size=(2, 5, 8)).astype(np.float32)
    lengths = (5, 3)
    mask = np.arange(5) < np.array(lengths)[:, None]
    reader = AttributeReader(attributes=4, classes=3)
    params = reader.init(jax.random.key(1), text, mask)["params"]
    mean, attended = reader.apply({"params": params}, text, mask)
    assert mean.shape == attended.shape == (2, 4, 3)

    unit = {
        name: np.asarray(value) / np.linalg.norm(value, axis=-1, keepdims=True)
        for name, value in params.items()
    }
    for row, length in enumerate(lengths):
        words = text[row, :length]
        for a, query in enumerate(unit["queries"]):
            weights = np.exp(words @ query)
            seen = weights @ words / weights.sum()
            np.testing.assert_allclose(
                attended[row, a], unit["classifiers"][a] @ seen, rtol=1e-5, atol=1e-5
            )
            np.testing.assert_allclose(
                mean[row, a], unit["classifiers"][a] @ words.mean(0), rtol=1e-5, atol=1e-5
            )

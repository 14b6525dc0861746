"""Turns the findings of a case into the arrays that `render` draws."""

import numpy as np

from data_pipelines.phantom.findings import Finding


def place_findings(
    seed: int, patient: dict[str, np.ndarray], findings: tuple[Finding, ...]
) -> dict[str, np.ndarray]:
    """Adds the findings' arrays to a patient; absent findings have size 0."""
    return dict(patient)

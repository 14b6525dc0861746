"""A procedural chest CT: seeded patients, their 18 possible findings, and a JAX renderer."""

from data_pipelines.phantom.case import Case, case_from_findings, sample_case
from data_pipelines.phantom.findings import FINDINGS, Finding
from data_pipelines.phantom.grid import HIGH_GRID, LOW_GRID, Grid
from data_pipelines.phantom.render import render, render_findings

__all__ = [
    "FINDINGS",
    "HIGH_GRID",
    "LOW_GRID",
    "Case",
    "Finding",
    "Grid",
    "case_from_findings",
    "render",
    "render_findings",
    "sample_case",
]

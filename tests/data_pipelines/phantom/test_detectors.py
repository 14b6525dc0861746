"""Detectors on phantoms of which it is known what is wrong: the same patient with and without."""

import functools

import numpy as np
import pytest

from data_pipelines.phantom.case import OTHER_SIDE, case_from_findings
from data_pipelines.phantom.chest_regions import read_chest, to_detector_grid
from data_pipelines.phantom.detectors import SIDED, detect
from data_pipelines.phantom.findings import FINDINGS, Finding
from data_pipelines.phantom.render import render
from gct_jax.volumes.grid import Grid

SPACING_MM = (9.0, 5.625, 5.625)
GRID = Grid.centred((33, 64, 64), (SPACING_MM[0], SPACING_MM[1], SPACING_MM[1]))
SEEDS = range(300, 306)
# What can be seen at the detectors' resolution, each as a report would have it.
SEEN = (
    Finding("Medical material", None, "pacemaker", None, 0.8),
    Finding("Arterial wall calcification", None, None, "large", 0.95),
    Finding("Cardiomegaly", None, None, "large", 0.9),
    Finding("Pericardial effusion", None, None, "large", 0.9, 22),
    Finding("Hiatal hernia", None, None, "large", 0.9, 75),
    Finding("Mosaic attenuation pattern", None, None, "large", 0.9),
    Finding("Emphysema", "left", "upper lobe", "large", 0.9),
    Finding("Atelectasis", "left", "lower lobe", "large", 0.9),
    Finding("Lung opacity", "left", "upper lobe", "large", 0.9),
    Finding("Pleural effusion", "left", None, "large", 0.9, 90),
    Finding("Consolidation", "left", "lower lobe", "large", 0.9),
    Finding("Interlobular septal thickening", "left", "lower lobe", "large", 0.9),
)


@functools.cache
def volume(seed, *findings):
    return np.asarray(render(case_from_findings(seed, 58, "male", findings).anatomy, GRID))


@functools.cache
def detection(seed, *findings):
    return detect(volume(seed, *findings), SPACING_MM)


def on_the_other_side(finding):
    return Finding(**{**vars(finding), "side": OTHER_SIDE[finding.side]})


@pytest.mark.parametrize("finding", SEEN, ids=lambda finding: finding.name)
def test_score_rises_with_the_finding(finding):
    name = finding.name
    risen = [detection(s, finding).score[name] > detection(s).score[name] for s in SEEDS]
    assert sum(risen) >= len(SEEDS) - 1


@pytest.mark.parametrize("finding", [f for f in SEEN if f.side], ids=lambda finding: finding.name)
def test_the_side_is_told(finding):
    name, right = finding.name, on_the_other_side(finding)
    told = [
        detection(seed, finding).left_minus_right[name]
        > detection(seed, right).left_minus_right[name]
        for seed in SEEDS
    ]
    assert sum(told) >= len(SEEDS) - 1


def test_every_finding_has_a_finite_score_even_in_an_empty_volume():
    for hu in (volume(300), np.full(volume(300).shape, -1000, np.int16)):
        found = detect(hu, SPACING_MM)
        assert tuple(found.score) == FINDINGS
        assert tuple(found.left_minus_right) == SIDED
        assert np.isfinite([*found.score.values(), *found.left_minus_right.values()]).all()


def test_heart_ratio_is_that_of_the_rendered_heart():
    wide = Finding("Cardiomegaly", None, None, "large", 0.9)
    ratios = [read_chest(volume(300, *f), SPACING_MM).heart_ratio for f in ((), (wide,))]
    assert 0.7 < ratios[0] < 1.1 < ratios[1] < 2  # of half the width of the lungs


def test_any_grid_is_averaged_about_the_same_centre():
    fine = (4.5, 2.8125, 2.8125)
    z, y, x = np.meshgrid(
        *((np.arange(2 * n) - n + 0.5) * mm for n, mm in zip((9, 16, 16), fine, strict=True)),
        indexing="ij",
    )
    coarse = to_detector_grid(3 * z - 2 * y + x, fine)
    assert coarse.shape == (9, 16, 16)
    z, y, x = np.meshgrid(
        *((np.arange(n) - (n - 1) / 2) * mm for n, mm in zip((9, 16, 16), SPACING_MM, strict=True)),
        indexing="ij",
    )
    inner = (slice(1, -1),) * 3
    np.testing.assert_allclose(coarse[inner], (3 * z - 2 * y + x)[inner], atol=1e-3)
    same = np.zeros((3, 4, 4), np.int16)
    np.testing.assert_array_equal(to_detector_grid(same, SPACING_MM), same)

"""Rendered volumes: HU by tissue, sides, masks, resolution, and what a finding changes."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy import ndimage

from data_pipelines.phantom.case import case_from_findings, sample_case
from data_pipelines.phantom.findings import FINDINGS, Finding
from data_pipelines.phantom.render import render, render_with_findings
from gct_jax.volumes.grid import Grid

LOW_GRID = Grid.centred((33, 64, 64), (9.0, 5.625, 5.625))
FINE_GRID = Grid.centred((33, 128, 128), (9.0, 2.8125, 2.8125))  # the field of view of LOW_GRID
BATCH = 10
X_MM = LOW_GRID.axes_mm()[2]


def stack(cases):
    """Anatomy of BATCH cases as one batch; the last case fills it up."""
    cases = list(cases) + [cases[-1]] * (BATCH - len(cases))
    return jax.tree.map(lambda *arrays: np.stack(arrays), *(case.anatomy for case in cases))


@pytest.fixture(scope="module")
def draw():
    """Function of cases to volumes [case, d, h, w] in HU and masks [case, finding, d, h, w]."""
    batched = jax.jit(jax.vmap(lambda anatomy: render_with_findings(anatomy, LOW_GRID)))

    def drawn(*cases):
        volumes, masks = batched(stack(cases))
        return np.asarray(volumes)[: len(cases)], np.asarray(masks)[: len(cases)]

    return drawn


def case_with(*findings, seed=11, contrast=True):
    case = case_from_findings(seed, 62, "male", findings)
    quiet = case.anatomy | {"noise_hu": np.float32(0)}
    if not contrast:
        quiet |= {"blood_hu": np.float32(42), "heart_muscle_hu": np.float32(45)}
    return dataclasses.replace(case, anatomy=quiet)


def voxel(anatomy, x, y, z):
    """Index on the low grid of a point of the patient, all in mm (the bend is neglected)."""
    shift = anatomy["shift"]
    place = np.array([z + shift[2], y + shift[1], x + shift[0]])
    return tuple(
        np.round(place / LOW_GRID.spacing_mm + (np.array(LOW_GRID.shape) - 1) / 2).astype(int)
    )


@pytest.mark.long
@pytest.mark.slow
def test_one_seed_one_volume_and_batches_equal_single_cases(draw):
    cases = [sample_case(seed) for seed in (1, 2)]
    volumes, _ = draw(*cases)
    assert np.abs(volumes[0] - volumes[1]).mean() > 50
    for case, volume in zip(cases, volumes, strict=True):
        single = np.asarray(render(case.anatomy, LOW_GRID))
        np.testing.assert_array_equal(single, np.asarray(render(case.anatomy, LOW_GRID)))
        # Fused differently, edges may move by a rounding error of a coordinate.
        np.testing.assert_allclose(single, volume, atol=0.5)


def test_tissues_have_their_densities(draw):
    case = case_with(contrast=False)
    volume = draw(case)[0][0]
    anatomy = case.anatomy
    levels = anatomy["levels_mm"]
    assert volume.shape == LOW_GRID.shape
    assert np.isfinite(volume).all() and volume.min() == -1000
    assert np.all(volume[:, 0, :] == -1000)  # air in front of the patient
    for place, low, high in (
        ((-65, -5, anatomy["dome_top"][0] - 35), 30, 90),  # liver
        ((-75, -10, 20), -930, -650),  # right lung
        ((75, -10, 20), -930, -650),  # left lung
        ((0, np.interp(10, levels, anatomy["spine_y"]), 9), 60, 700),  # vertebra
        (anatomy["heart"][0][:3], 20, 80),
        (anatomy["aorta_ends"][10][3:], 20, 80),
    ):
        z, y, x = voxel(anatomy, *place)
        assert low < np.median(volume[z, y - 1 : y + 2, x - 1 : x + 2]) < high
    z, y, x = voxel(anatomy, 0, 14, 100)
    assert volume[z, y - 1 : y + 2, x - 1 : x + 2].min() < -850  # trachea
    body = volume[12:25] > -300
    assert (volume[12:25] > 400).sum() / body.sum() > 0.02  # bone
    share = np.mean((volume[16] < -600) & (volume[16] > -990))
    assert 0.1 < share < 0.4  # lungs


def test_organs_lie_on_their_sides(draw):
    volumes, _ = draw(*[case_with(seed=seed, contrast=False) for seed in range(6)])
    right, left = volumes[:, :4, :, 8:32], volumes[:, :4, :, 32:56]
    soft = [((half > 20) & (half < 110)).mean() for half in (right, left)]
    assert soft[0] > 1.3 * soft[1]  # liver
    chest = (volumes[:, 10:14, 16:40] > -300) & (volumes[:, 10:14, 16:40] < 300)
    assert (chest.mean((0, 1, 2)) * X_MM)[12:52].sum() > 0  # the heart points to the left
    assert (volumes[:, 0] > -500).sum() > (volumes[:, -1] > -500).sum() * 0.8


def test_masks_agree_with_labels(draw):
    for first in range(0, 100, BATCH):
        cases = [sample_case(seed) for seed in range(first, first + BATCH)]
        present = draw(*cases)[1].any((2, 3, 4))
        np.testing.assert_array_equal(present, np.stack([case.labels for case in cases]))


def test_findings_lie_on_the_side_they_name(draw):
    places = dict.fromkeys(("Pleural effusion",)) | {"Lymphadenopathy": "hilar"}
    names = (
        *places,
        "Emphysema",
        "Atelectasis",
        "Lung opacity",
        "Pulmonary fibrotic sequela",
        "Peribronchial thickening",
        "Consolidation",
        "Bronchiectasis",
        "Lung nodule",
        "Interlobular septal thickening",
    )
    expected = {"left": (0.97, 1), "right": (0, 0.03), "bilateral": (0.15, 0.85)}
    for name in names:
        place = places.get(name, "lower lobe")
        # A nodule on each side may differ in the number of voxels as chance has it.
        sides = ("left", "right") if name == "Lung nodule" else tuple(expected)
        asked = [(side, seed) for side in sides for seed in (1, 2, 3)]
        cases = [
            case_from_findings(seed, 60, "female", (Finding(name, side, place, "moderate", 0.5),))
            for side, seed in asked
        ]
        masks = draw(*cases)[1][:, FINDINGS.index(name)]
        for mask, (side, _) in zip(masks, asked, strict=True):
            columns = mask.sum((0, 1))
            share = columns[X_MM > 0].sum() / columns.sum()
            low, high = expected[side]
            assert low <= share <= high, (name, side)


def test_a_bilateral_finding_without_a_place_is_on_both_sides(draw):
    names = (
        "Consolidation",
        "Lung opacity",
        "Atelectasis",
        "Lung nodule",
        "Pulmonary fibrotic sequela",
        "Emphysema",
    )
    cases = [
        case_from_findings(4, 60, "male", (Finding(name, "bilateral", None, "large", 0.9),))
        for name in names
    ]
    for name, masks in zip(names, draw(*cases)[1], strict=True):
        columns = masks[FINDINGS.index(name)].sum((0, 1))
        assert columns[X_MM < 0].any() and columns[X_MM > 0].any(), name
        np.testing.assert_array_equal(masks.any((1, 2, 3)), np.array(FINDINGS) == name)


def test_lobes_lie_above_each_other(draw):
    places = ("upper lobe", "middle lobe", "lower lobe")
    cases = [
        case_from_findings(
            seed, 60, "male", (Finding("Lung opacity", "right", place, "large", 0.8),)
        )
        for seed in (1, 2, 3)
        for place in places
    ]
    masks = draw(*cases)[1][:, FINDINGS.index("Lung opacity")]
    count = masks.sum((1, 2, 3))
    height = (masks.sum((2, 3)) * np.arange(33)).sum(1) / count
    behind = (masks.sum((1, 3)) * np.arange(64)).sum(1) / count
    for upper, middle, lower in np.arange(9).reshape(3, 3):
        assert height[upper] > height[middle]
        assert height[upper] > height[lower]
        assert behind[lower] > behind[middle]  # the middle lobe is in front


def test_findings_have_their_densities(draw):
    expected = {
        "Pleural effusion": (-20, 40),
        "Consolidation": (0, 80),
        "Lung opacity": (-650, -300),
        "Emphysema": (-985, -890),
        "Atelectasis": (20, 100),
        "Pericardial effusion": (-25, 40),
        "Lung nodule": (-150, 80),
        "Lymphadenopathy": (0, 90),
        "Hiatal hernia": (-1000, 100),
    }
    places = {
        "Lymphadenopathy": "axillary",
        "Pleural effusion": None,
        "Pericardial effusion": None,
        "Hiatal hernia": None,
    }
    cases = [
        case_with(
            Finding(
                name,
                None if name in ("Pericardial effusion", "Hiatal hernia") else "left",
                places.get(name, "upper lobe"),
                "large",
                0.9,
            )
        )
        for name in expected
    ]
    volumes, masks = draw(*cases)
    for name, volume, mask in zip(expected, volumes, masks, strict=True):
        low, high = expected[name]
        assert low < np.median(volume[mask[FINDINGS.index(name)]]) < high, name


def test_effusion_gathers_behind_and_grows(draw):
    index = FINDINGS.index("Pleural effusion")
    cases = [
        case_with(Finding("Pleural effusion", "right", None, None, severity))
        for severity in (0.1, 0.5, 0.9)
    ]
    masks = draw(*cases)[1][:, index]
    count = masks.sum((1, 2, 3))
    assert count[0] > 100
    assert np.all(np.diff(count) > count[:-1])
    healthy, small = draw(case_with(), cases[0])[0]
    lung = healthy < -500
    rows = np.arange(64)
    behind = (masks[0].sum((0, 2)) * rows).sum() / count[0]
    body = (lung[:, 20:50, 10:54].sum((0, 2)) * rows[20:50]).sum() / lung[:, 20:50, 10:54].sum()
    assert behind > body + 5
    assert small[masks[0]].mean() > healthy[masks[0]].mean() + 500


def test_a_finding_changes_the_volume_only_near_itself(draw):
    nodule = case_with(Finding("Lung nodule", "left", "upper lobe", None, 0.5, 20.0))
    (healthy, ill), masks = draw(case_with(), nodule)
    changed = np.abs(ill - healthy) > 1
    near = np.zeros_like(changed)
    for z, y, x in np.argwhere(masks[1, FINDINGS.index("Lung nodule")]):
        near[max(z - 1, 0) : z + 2, y - 1 : y + 2, x - 1 : x + 2] = True
    assert changed.any()
    assert not (changed & ~near).any()


def test_grids_show_the_same_patient():
    case = case_with(Finding("Consolidation", "right", "lower lobe", "large", 0.8), seed=3)
    low = np.asarray(render(case.anatomy, LOW_GRID))
    fine = np.asarray(render(case.anatomy, FINE_GRID))
    pooled = fine.reshape(33, 64, 2, 64, 2).mean((2, 4))
    difference = np.abs(low - pooled)
    assert np.corrcoef(low.ravel(), pooled.ravel())[0, 1] > 0.99
    assert difference.mean() < 20
    assert np.median(difference) < 8
    assert abs(low.mean() - fine.mean()) < 10


@pytest.mark.parametrize("name", ["Consolidation", "Lung opacity"])
def test_airspace_disease_is_in_more_than_one_place(draw, name):
    finding = Finding(name, "right", "lower lobe", None, 0.2)
    cases = [case_from_findings(seed, 60, "male", (finding,)) for seed in range(BATCH)]
    masks = draw(*cases)[1][:, FINDINGS.index(name)]
    pieces = [ndimage.label(mask)[1] for mask in masks]
    assert np.mean(np.array(pieces) > 1) >= 0.5
    first_mm = 13 + 42 * finding.severity  # half-axis of the largest patch
    one_patch = 4 / 3 * np.pi * first_mm**3 / np.prod(LOW_GRID.spacing_mm)  # voxels
    assert masks.sum() > 1.5 * BATCH * one_patch


def test_mosaic_attenuation_is_made_of_regions_of_centimetres(draw):
    mosaic = Finding("Mosaic attenuation pattern", None, None, "large", 0.9)
    healthy, ill = draw(case_with(), case_with(mosaic))[0]
    lung = ndimage.binary_erosion((healthy > -960) & (healthy < -700))
    change = np.where(lung, ill - healthy, np.nan)
    assert np.nanpercentile(change, 25) < -30 and np.nanpercentile(change, 75) > 60
    # Alike 11 mm away, unlike 45 mm away
    near, far = (_correlation(change[..., :-lag], change[..., lag:]) for lag in (2, 8))
    assert near > 0.4 and abs(far) < 0.3


def _correlation(first, second):
    both = np.isfinite(first) & np.isfinite(second)
    return np.corrcoef(first[both], second[both])[0, 1]

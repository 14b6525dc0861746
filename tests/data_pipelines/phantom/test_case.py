"""Patients: seeds, labels, slots, and the words that a case accepts."""

import numpy as np
import pytest

from data_pipelines.phantom.case import (
    case_from_findings,
    counterfactual_description,
    sample_case,
    sample_description,
)
from data_pipelines.phantom.findings import FINDINGS, Finding, sample_findings
from data_pipelines.phantom.render import REACH_MM
from data_pipelines.phantom.shapes import ellipsoid
from gct_jax.errors import InputError


def test_same_seed_same_case_and_other_seed_other_body():
    first = sample_case(3)
    np.random.seed(0)  # the global generator plays no part
    again, other = sample_case(3), sample_case(4)
    assert (first.age, first.sex, first.findings) == (again.age, again.sex, again.findings)
    for name, array in first.anatomy.items():
        np.testing.assert_array_equal(array, again.anatomy[name])
    assert not np.array_equal(first.anatomy["heart"], other.anatomy["heart"])
    assert not np.array_equal(first.anatomy["vessel_ends"], other.anatomy["vessel_ends"])


def test_cases_stack():
    shapes = [
        {name: (array.shape, array.dtype) for name, array in sample_case(seed).anatomy.items()}
        for seed in range(12)
    ]
    assert all(other == shapes[0] for other in shapes)
    assert {dtype for _, dtype in shapes[0].values()} == {np.dtype("f4"), np.dtype("u4")}


def test_arrays_are_finite_and_capsules_fit_their_windows():
    half_voxel_mm = 2.8
    for seed in range(20):
        anatomy = sample_case(seed).anatomy
        assert all(np.isfinite(array).all() for array in anatomy.values())
        for name, reach in REACH_MM.items():
            ends, radii = anatomy[f"{name}_ends"], anatomy[f"{name}_radii"]
            radius = radii.reshape(len(radii), -1).max(1)
            half = np.abs(ends[:, 3:] - ends[:, :3]).max(1) / 2
            assert ((half + radius) * (radius > 0)).max() + half_voxel_mm <= reach, name


def test_labels_follow_findings_in_the_order_of_ct_rate():
    assert len(FINDINGS) == 18
    assert FINDINGS[0] == "Medical material"
    assert FINDINGS[12] == "Pleural effusion"
    assert FINDINGS[17] == "Interlobular septal thickening"
    for seed in range(10):
        case = sample_case(seed)
        names = {finding.name for finding in case.findings}
        assert [FINDINGS[i] in names for i in range(18)] == case.labels.tolist()


def test_prevalences():
    drawn = [sample_findings(np.random.default_rng(seed), 20 + seed % 65) for seed in range(3000)]
    share = np.mean([[any(f.name == n for f in case) for n in FINDINGS] for case in drawn], axis=0)
    normal = np.mean([not case for case in drawn])
    assert share.min() > 0.09 and share.max() < 0.25
    assert 0.09 < normal < 0.16
    both = np.mean(
        [{"Pleural effusion", "Atelectasis"} <= {f.name for f in case} for case in drawn]
    )
    product = share[FINDINGS.index("Pleural effusion")] * share[FINDINGS.index("Atelectasis")]
    assert both > 1.1 * product  # effusion and atelectasis go together


def test_a_finding_leaves_the_patient_as_it_is():
    healthy = case_from_findings(5, 61, "male", ())
    nodule = Finding("Lung nodule", "left", "upper lobe", "moderate", 0.5, 18.0)
    ill = case_from_findings(5, 61, "male", (nodule,))
    changed = {
        name
        for name in healthy.anatomy
        if not np.array_equal(healthy.anatomy[name], ill.anatomy[name])
    }
    assert changed == {"lesion_ends", "lesion_radii"}


def test_heart_width_over_chest_width():
    heart = Finding("Cardiomegaly", None, None, "moderate", 0.5)
    axes = [np.linspace(-140, 140, count) for count in (141, 41, 41)]
    x, y, z = np.meshgrid(*axes, indexing="ij")

    class Points:
        pass

    points = Points()
    points.x, points.y, points.z = x, y, z
    for seed in range(3):
        for findings, low, high in (((), 0.37, 0.49), ((heart,), 0.56, 0.66)):
            anatomy = case_from_findings(seed, 50, "female", findings).anatomy
            inside = np.minimum(*(ellipsoid(points, part)[0] for part in anatomy["heart"])) < 0
            ratio = np.ptp(x[inside]) / (2 * anatomy["cage_half_width"].max())
            assert low < ratio < high


@pytest.mark.parametrize(
    ("finding", "message"),
    [
        (Finding("Pneumothorax", "left"), "Pneumothorax"),
        (Finding("Consolidation", "left", "middle lobe", "large"), "no left middle lobe"),
        (Finding("Lung nodule", "left", "spleen"), "spleen"),
        (Finding("Lymphadenopathy", "left", "cervical"), "cervical"),
        (Finding("Medical material", None, "spoon"), "spoon"),
        (Finding("Pleural effusion", "port"), "port"),
    ],
)
def test_impossible_findings_are_refused(finding, message):
    with pytest.raises(InputError, match=message):
        case_from_findings(0, 50, "male", (finding,))


def test_a_name_given_twice_is_refused():
    finding = Finding("Lung nodule", "left", "upper lobe")
    with pytest.raises(InputError, match="twice"):
        case_from_findings(0, 50, "male", (finding, finding))


def test_a_counterfactual_is_the_same_patient_with_findings_on_the_other_side():
    moved = 0
    for seed in range(40):
        first, second = sample_description(seed), counterfactual_description(seed)
        assert (first.age, first.sex) == (second.age, second.sex)
        before = {finding.name: finding for finding in first.findings}
        for finding in second.findings:
            if finding.name in before:
                was = before[finding.name]
                assert {was.side, finding.side} == {"left", "right"}
                assert was.size == finding.size and was.place in (None, finding.place)
                moved += 1
    assert moved > 20
    healthy = [
        case_from_findings(7, *describe(7)[:2], ()).anatomy
        for describe in (sample_description, counterfactual_description)
    ]
    for name in healthy[0]:
        np.testing.assert_array_equal(healthy[0][name], healthy[1][name])

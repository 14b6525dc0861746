"""Class numbers of hand-written reports, and of generated ones against their case."""

import numpy as np

from data_pipelines.phantom.attributes import (
    ATTRIBUTES,
    CLASSES,
    PLACE_NAMES,
    STATE,
    report_attributes,
)
from data_pipelines.phantom.case import sample_description
from data_pipelines.phantom.findings import FINDINGS
from data_pipelines.phantom.report import write_report


def of(attributes, name):
    first = 3 * FINDINGS.index(name)
    return tuple(attributes[first : first + 3])


def test_a_report_by_hand():
    text = "62 years old female: Large left pleural effusion. No cardiomegaly. Pacemaker."
    attributes = report_attributes(text)
    assert of(attributes, "Pleural effusion") == (2, -1, 2)
    assert of(attributes, "Cardiomegaly") == (0, -1, -1)
    assert of(attributes, "Medical material") == (4, PLACE_NAMES.index("pacemaker"), -1)
    assert tuple(attributes[-2:]) == (4, 1)
    assert tuple(report_attributes("Normal chest CT.")[-2:]) == (-1, -1)


def test_generated_reports_state_every_finding_with_its_side():
    for seed in range(60):
        case = sample_description(seed)
        attributes = report_attributes(write_report(case, np.random.default_rng(seed)))
        assert attributes.shape == (ATTRIBUTES,) and attributes.max() < CLASSES
        states = dict.fromkeys(FINDINGS, 0)
        states |= {finding.name: STATE[finding.side] for finding in case.findings}
        assert {name: of(attributes, name)[0] for name in FINDINGS} == states

"""A phantom patient: age, sex, findings, and the arrays from which `render` draws the chest.

`sample_case(seed)` draws everything from the seed; `case_from_findings` takes the findings as
given. The patient and each finding have random streams of their own, so that the same seed with
another list of findings is the same patient, with or without the disease.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from data_pipelines.phantom.anatomy import sample_patient
from data_pipelines.phantom.findings import (
    FINDINGS,
    Finding,
    sample_finding,
    sample_findings,
)
from data_pipelines.phantom.placement import place_findings

OTHER_SIDE = {"left": "right", "right": "left"}


@dataclasses.dataclass(frozen=True)
class Case:
    """A patient.

    Attributes:
      seed: the random seed.
      age: years.
      sex: "male" or "female".
      findings: what is abnormal, each name at most once.
      anatomy: float32 and uint32 arrays, the same names and shapes for every case.
      labels: bool [18], presence of each of `FINDINGS`.
    """

    seed: int
    age: int
    sex: str
    findings: tuple[Finding, ...]
    anatomy: dict[str, np.ndarray]
    labels: np.ndarray


class Description(NamedTuple):
    """What a report says about a patient: age in years, sex, findings."""

    age: int
    sex: str
    findings: tuple[Finding, ...]


def sample_description(seed: int) -> Description:
    """The patient of this seed without the anatomy, which takes a hundred times longer."""
    rng = np.random.default_rng((seed, 0))
    age = int(np.clip(rng.normal(58, 16), 20, 90))
    sex = ("male", "female")[rng.integers(2)]
    return Description(age, sex, sample_findings(rng, age))


def sample_case(seed: int) -> Case:
    """The patient of this seed: about one in eight is normal, the others have 1 to 8 findings."""
    return case_from_findings(seed, *sample_description(seed))


def counterfactual_description(seed: int) -> Description:
    """The patient of this seed with other findings: one-sided ones are on the other side, the
    rest is gone, and those that the patient lacked are drawn."""
    age, sex, findings = sample_description(seed)
    rng = np.random.default_rng((seed, 3))
    moved = [
        sample_finding(rng, finding.name, OTHER_SIDE[finding.side], finding.place, finding.size)
        for finding in findings
        if finding.side in OTHER_SIDE and finding.place != "middle lobe"
    ]
    names = {finding.name for finding in findings}
    new = [finding for finding in sample_findings(rng, age) if finding.name not in names]
    both = sorted([*moved, *new], key=lambda finding: FINDINGS.index(finding.name))
    return Description(age, sex, tuple(both))


def case_from_findings(seed: int, age: int, sex: str, findings: tuple[Finding, ...]) -> Case:
    """The patient of this seed with exactly these findings.

    Raises:
      InputError: an unknown name, side or place, or a name given twice.
    """
    patient = sample_patient(np.random.default_rng((seed, 1)), age, sex, findings)
    anatomy = place_findings(seed, patient, findings)
    labels = np.isin(FINDINGS, [finding.name for finding in findings])
    return Case(seed, age, sex, tuple(findings), anatomy, labels)

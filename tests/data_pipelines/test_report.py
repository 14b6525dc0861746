import dataclasses
import re

import numpy as np
import pytest

from data_pipelines.phantom.findings import FINDINGS, PLACES, Finding, sample_findings
from data_pipelines.phantom.report import write_report
from data_pipelines.phantom.report_parser import parse_report
from data_pipelines.phantom.report_phrases import NEGATIONS, NORMAL, PHRASES


@dataclasses.dataclass
class Patient:
    """The part of a case that a report reads."""

    age: int
    sex: str
    findings: tuple[Finding, ...]


def patient(seed: int) -> Patient:
    rng = np.random.default_rng(seed)
    age = int(rng.integers(20, 91))
    return Patient(age, ("male", "female")[seed % 2], sample_findings(rng, age))


@pytest.mark.parametrize("first", range(0, 600, 100))
def test_round_trip(first):
    for seed in range(first, first + 100):
        case = patient(seed)
        text = write_report(case, np.random.default_rng(seed))
        report = parse_report(text)
        assert (report.age, report.sex) == (case.age, case.sex), text
        stated = {finding.name: finding for finding in report.findings}
        assert len(stated) == len(report.findings), text
        assert stated.keys() == {finding.name for finding in case.findings}, text
        assert not report.denied & stated.keys(), text
        for finding in case.findings:
            read = stated[finding.name]
            assert (read.side, read.place) == (finding.side, finding.place), text
            assert read.size in (None, finding.size), text
            assert read.size_mm is None or read.size_mm == pytest.approx(finding.size_mm), text
        assert 1 <= len(re.findall(r"\.(?: |$)", text)) <= 8, text


def test_the_same_generator_state_gives_the_same_text_and_another_state_another_wording():
    case = Patient(58, "female", (Finding("Pleural effusion", "left", None, "large"),))
    texts = [write_report(case, np.random.default_rng(seed)) for seed in range(60)]
    assert texts == [write_report(case, np.random.default_rng(seed)) for seed in range(60)]
    assert len(set(texts)) > 25
    assert "58 years old female: Large left pleural effusion." in texts


@pytest.mark.parametrize("name", FINDINGS)
def test_every_finding_has_six_wordings(name):
    place = next(iter(PLACES.get(name, {None: 1})))
    side = None if place == "mediastinal" or name not in PLACES else "left"
    side = None if name == "Medical material" else side
    case = Patient(40, "male", (Finding(name, side, place),))  # no size: only the phrase varies
    texts = [write_report(case, np.random.default_rng(seed)) for seed in range(150)]
    openings = {text.split(": ", 1)[1].split(".")[0] for text in texts}
    assert len(openings) >= 6
    assert {f.side for text in texts for f in parse_report(text).findings} == {side}


def test_words_of_place_and_side_stay_in_every_phrase():
    for name, options in PHRASES.items():
        for phrase in options:
            where = any(slot in phrase for slot in ("{side}", "{loc}", "{at}"))
            assert where == (name in PLACES), phrase


def test_a_denial_denies_exactly_what_it_is_listed_under():
    for names, options in NEGATIONS.items():
        for option in options:
            report = parse_report(option + ".")
            assert (report.denied, report.findings) == (frozenset(names), ()), option


def test_a_normal_study_affirms_nothing():
    for option in NORMAL:
        assert parse_report(f"30 years old male: {option}.").findings == ()
    for seed in range(50):
        text = write_report(Patient(30, "male", ()), np.random.default_rng(seed))
        assert parse_report(text).findings == ()


def test_handwritten_reports():
    report = parse_report("58 years old female: Large left pleural effusion. Cardiomegaly.")
    assert (report.age, report.sex) == (58, "female")
    effusion, heart = report.findings
    assert (effusion.name, effusion.side, effusion.size) == ("Pleural effusion", "left", "large")
    assert (heart.name, heart.side, heart.size) == ("Cardiomegaly", None, None)

    report = parse_report(
        "There is a 1.4 cm nodule in the right upper lobe. Heart size is normal. "
        "No pleural effusion or pneumothorax. Pacemaker in situ; mild emphysema in both lungs."
    )
    nodule, device, emphysema = report.findings
    assert (nodule.side, nodule.place, nodule.size_mm) == ("right", "upper lobe", 14.0)
    assert (device.name, device.place) == ("Medical material", "pacemaker")
    assert (emphysema.name, emphysema.side, emphysema.size) == ("Emphysema", "bilateral", "small")
    assert report.denied == {"Cardiomegaly", "Pleural effusion"}
    assert report.age is None

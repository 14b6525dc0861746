"""Lines of the golden case `prep`, and what the mended form does differently."""

import json
from pathlib import Path

import pytest

from data_pipelines.generatect import reports as reports

GOLDEN = Path(__file__).parents[2] / "golden"
SHEET = GOLDEN / "prep/reports.xlsx"


def test_reference_lines():
    expected = json.loads((GOLDEN / "prep.json").read_text())["texts"]
    lines, _ = reports.collect_lines(
        GOLDEN / "prep", reports.read_impressions(SHEET), reports.reference_line
    )
    by_accession = {path.parent.name: line for path, line in lines.items()}
    assert set(by_accession) == {*expected, "acc_short"}  # dropped for its slices, not its text
    for accession, texts in expected.items():
        assert by_accession[accession] == texts["line_stored"]
        assert reports.reference_prompt(by_accession[accession]) == texts["line_returned"]


@pytest.mark.parametrize(
    ("age", "compatible", "mended"),
    [
        ("065Y", "65 years old", "65 years old"),
        ("007Y", "07 years old", "7 years old"),
        ("101Y", "01 years old", "101 years old"),
        ("018M", "18 years old", "18 months old"),
        ("001W", "01 years old", "1 week old"),
        ("5Y", "05 years old", "5 years old"),
    ],
)
def test_ages(age, compatible, mended):
    metadata = {"PatientAge": age, "PatientSex": "F"}
    assert reports.reference_line(metadata, "Normal.") == f"{compatible} female: Normal."
    assert reports.report_line(metadata, "Normal.") == f"{mended} female: Normal."


def test_unknown_is_left_out():
    assert reports.reference_line({}, None) == "None years old None: nan"
    assert reports.report_line({"PatientSex": "O", "PatientAge": "unknown"}, "A  b.\n") == "A b."
    assert reports.report_line({"PatientSex": "m"}, "Normal.") == "male: Normal."
    for missing in (None, "", " ", "nan", "Not given."):
        assert reports.report_line({"PatientSex": "m"}, missing) is None


def write_case(root, accession, metadata):
    folder = root / "patient" / accession
    folder.mkdir(parents=True)
    (folder / f"{accession}_1.nii.gz").touch()
    if metadata is not None:
        (folder / f"{accession}_1_metadata.json").write_text(metadata)


def test_skipped_volumes_have_reasons(tmp_path):
    write_case(tmp_path, "good", '{"PatientAge": "040Y", "PatientSex": "M"}')
    write_case(tmp_path, "silent", "{}")
    write_case(tmp_path, "unlisted", "{}")
    write_case(tmp_path, "broken", "{")
    write_case(tmp_path, "bare", None)
    impressions = {"good": "Normal.", "silent": None, "broken": "Normal.", "bare": "Normal."}
    lines, skipped = reports.collect_lines(tmp_path, impressions)
    assert {path.parent.name: line for path, line in lines.items()} == {
        "good": "40 years old male: Normal."
    }
    reasons = {path.parent.name: reason for path, reason in skipped.items()}
    assert set(reasons) == {"silent", "unlisted", "broken", "bare"}
    assert reasons["silent"] == "accession silent has no impression"
    assert reasons["unlisted"] == "accession unlisted is not in the sheet"


def test_sheet_without_the_columns(tmp_path):
    from openpyxl import Workbook

    book = Workbook()
    book.active.append(["Accession", "Text"])
    book.save(tmp_path / "other.xlsx")
    with pytest.raises(ValueError, match="no columns AccessionNo and Impressions"):
        reports.read_impressions(tmp_path / "other.xlsx")


def test_sheet_with_numbers_and_gaps(tmp_path):
    from openpyxl import Workbook

    book = Workbook()
    for row in (["Impressions", "AccessionNo"], ["Normal.", 17], [None, "b"], [None, None]):
        book.active.append(row)
    book.save(tmp_path / "reports.xlsx")
    assert reports.read_impressions(tmp_path / "reports.xlsx") == {"17": "Normal.", "b": None}

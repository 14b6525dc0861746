"""Text lines for CT volumes from DICOM fields and a sheet of impressions.

`reference_line` makes the line published weights were trained on, with its faults: an age of 101
becomes 01, 18 months become 18 years, what is missing becomes "None" or "nan". `report_line` says
what is known and nothing else.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from data_pipelines.generatect.volumes import read_metadata
from data_pipelines.patients import clean_text, parse_age, parse_sex, prompt_line
from gct_jax.errors import ConfigError, InputError

SEXES = {"m": "male", "f": "female"}
DROPPED_CHARACTERS = str.maketrans("", "", "\"'()")


def reference_line(metadata: Mapping[str, Any], impression: str | None) -> str:
    """`<age> years old <sex>: <impression>` as the reference stores it.

    Args:
      metadata: DICOM fields; PatientAge ("065Y") and PatientSex are used.
      impression: text of the sheet; None for an empty cell.
    """
    age = metadata["PatientAge"][:-1].zfill(3)[1:] if "PatientAge" in metadata else None
    sex = metadata.get("PatientSex")
    sex = SEXES.get(str(sex).lower(), sex)
    return f"{age} years old {sex}: {'nan' if impression is None else impression}"


def reference_prompt(line: str) -> str:
    """A stored line as the reference's datasets return it: without quotes and parentheses."""
    return line.translate(DROPPED_CHARACTERS)


def report_line(metadata: Mapping[str, Any], impression: str | None) -> str | None:
    """`65 years old female: <impression>`, leaving out an unknown age or sex.

    Args:
      metadata: DICOM fields; PatientAge ("065Y", "018M") and PatientSex are used.
      impression: text of the sheet; None for an empty cell.

    Returns:
      The line, or None if there is no impression.
    """
    age = parse_age(metadata.get("PatientAge"))
    sex = parse_sex(metadata.get("PatientSex"))
    return prompt_line(age, sex, clean_text(impression)) or None


def read_impressions(sheet: str | Path) -> dict[str, str | None]:
    """Impression of every accession number in an `.xlsx` sheet; None for an empty cell.

    Raises:
      ConfigError: openpyxl is missing.
      InputError: the file cannot be read, or its first row does not name the columns AccessionNo
        and Impressions.
    """
    try:
        from openpyxl import load_workbook
        from openpyxl.utils.exceptions import InvalidFileException
    except ModuleNotFoundError:
        raise ConfigError("openpyxl is missing, which reads .xlsx; pip install '.[data]'") from None

    try:
        workbook = load_workbook(sheet, read_only=True)
    except (OSError, KeyError, BadZipFile, InvalidFileException) as error:
        raise InputError(f"{sheet}: {error}") from None
    try:
        header, *rows = workbook.worksheets[0].iter_rows(values_only=True)
    finally:
        workbook.close()
    if "AccessionNo" not in header or "Impressions" not in header:
        raise InputError(f"{sheet}: no columns AccessionNo and Impressions among {header}")
    accession, impression = header.index("AccessionNo"), header.index("Impressions")
    return {
        str(row[accession]): None if row[impression] is None else str(row[impression])
        for row in rows
        if row[accession] is not None
    }


def collect_lines(
    root: str | Path,
    impressions: Mapping[str, str | None],
    make_line: Callable[[Mapping[str, Any], str | None], str | None] = report_line,
) -> tuple[dict[Path, str], dict[Path, str]]:
    """Pair the volumes under `root`/patient/accession/*.nii.gz with their lines.

    Args:
      root: folder of patients.
      impressions: by accession number, the name of a volume's folder.
      make_line: `report_line` or `reference_line`.

    Returns:
      The line of every usable volume, and the reason why each other one was skipped.
    """
    lines: dict[Path, str] = {}
    skipped: dict[Path, str] = {}
    for path in sorted(Path(root).glob("*/*/*.nii.gz")):
        accession = path.parent.name
        if accession not in impressions:
            skipped[path] = f"accession {accession} is not in the sheet"
            continue
        try:
            line = make_line(read_metadata(path), impressions[accession])
        except (OSError, ValueError) as error:
            skipped[path] = f"no usable metadata: {error}"
            continue
        if line is None:
            skipped[path] = f"accession {accession} has no impression"
        else:
            lines[path] = line
    return lines, skipped

"""Ages, sexes and report texts as data sets write them, and the line that networks read."""

import re
import unicodedata
from typing import NamedTuple

UNITS = {"D": ("day", 365.25), "W": ("week", 52.18), "M": ("month", 12.0), "Y": ("year", 1.0)}
OLDEST = 120.0  # years
SEXES = {"m": "male", "male": "male", "f": "female", "female": "female"}
NOT_GIVEN = ("", "nan", "none", "null", "not given", "not given.", "n/a", "-")


class Age(NamedTuple):
    """An age as a number and in words: 1.5 and "18 months old"."""

    years: float
    words: str


def parse_age(text: object) -> Age | None:
    """An age as DICOM writes it ("065Y", "018M", "101Y") or as a number of years ("65", "65.0",
    "65 years"); None if there is none, or none that a person can have."""
    found = re.fullmatch(
        r"(\d{1,3})(?:\.(\d*))?\s*([DWMY])?(?:AYS?|EEKS?|ONTHS?|EARS?)?(?:[ -]OLD)?",
        str(text if text is not None else "").strip().upper(),
    )
    if not found:
        return None
    number, (unit, per_year) = int(found[1]), UNITS[found[3] or "Y"]
    years = (number + float(f"0.{found[2] or 0}")) / per_year
    if years > OLDEST:
        return None
    return Age(years, f"{number} {unit}{'' if number == 1 else 's'} old")


def parse_sex(text: object) -> str:
    """ "male", "female", or "" if it is not known or another."""
    return SEXES.get(str(text if text is not None else "").strip().lower(), "")


def clean_text(text: object) -> str:
    """A report on one line: Unicode composed, control characters and repeated blanks gone, and ""
    for what data sets write when there is none."""
    composed = unicodedata.normalize("NFC", str(text if text is not None else ""))
    printable = "".join(
        " " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c
        for c in composed
        if unicodedata.category(c) not in ("Cf", "Cs", "Co", "Cn")
    )
    line = " ".join(printable.split())
    return "" if line.lower() in NOT_GIVEN else line


def prompt_line(age: Age | None, sex: str, text: str) -> str:
    """`65 years old female: TEXT`, leaving out what is unknown; "" without a text."""
    if not text:
        return ""
    patient = " ".join(word for word in (age.words if age else "", sex) if word)
    return f"{patient}: {text}" if patient else text

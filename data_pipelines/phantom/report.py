"""Writes the report of a phantom case: "62 years old male: Moderate left pleural effusion."

Every finding of the case is named with its side and place; absent findings are either left out
or denied. Wording, order and detail vary with the generator; the same generator state gives the
same text. `report_parser.parse_report` reads the text back.
"""

import re
from typing import TYPE_CHECKING

import numpy as np

from data_pipelines.phantom import report_phrases as phrases

if TYPE_CHECKING:
    from data_pipelines.phantom.case import Case, Description, Finding

TERSE = 0.25  # share of reports in telegram style, without denials
JOIN = 0.12  # chance that two findings share a sentence
MAX_WORDS = 45  # denials stop here, so that typical reports fit the text encoder
LONG_LIST = 4  # with more findings than this each gets its terse phrase


def write_report(case: "Case | Description", rng: np.random.Generator) -> str:
    """Report of `case` in the form "<age> years old <sex>: <sentences>".

    Args:
      case: supplies age, sex, findings; every name in `findings` is affirmed.
      rng: the only source of variation; advanced in place.
    """
    return f"{case.age} years old {case.sex}: {write_impression(case.findings, rng)}"


def write_impression(findings: tuple["Finding", ...], rng: np.random.Generator) -> str:
    """Sentences for `findings` (none: a normal study) and a few denials of absent ones."""
    terse = rng.random() < TERSE or len(findings) > LONG_LIST
    order = rng.permutation(len(findings))
    sentences = _joined([_describe(findings[i], terse, rng) for i in order], terse, rng)
    if not findings:
        sentences = [_pick(phrases.NORMAL, rng)]
    if not terse or not findings:
        sentences += _denials({finding.name for finding in findings}, sentences, rng)
    return " ".join(sentence[0].upper() + sentence[1:] + "." for sentence in sentences)


def _describe(finding: "Finding", terse: bool, rng: np.random.Generator) -> str:
    slots = _slots(finding, terse, rng)
    if finding.name == "Medical material":
        options = phrases.DEVICE_PHRASES
    else:
        options = phrases.PHRASES[finding.name]
    phrase = options[0] if terse else _pick(options, rng)
    return _fill(phrase, slots)


def _slots(finding: "Finding", terse: bool, rng: np.random.Generator) -> dict[str, str]:
    grade = ""
    if finding.size and rng.random() < 0.85:
        grade = _pick(phrases.GRADES[finding.name][finding.size], rng)
    extent = ""
    if finding.size_mm and rng.random() < (0.3 if terse else 0.75):
        in_cm = finding.size_mm >= 10 and rng.random() < 0.4
        extent = f"{finding.size_mm / 10:.1f} cm" if in_cm else f"{finding.size_mm:.0f} mm"
    devices = phrases.DEVICES.get(finding.place or "", ("medical device",))
    loc, at = _location(finding)
    return {
        "size": grade,
        "size:ly": f"{grade}ly" if grade else "",
        "mm": extent,
        "side": finding.side or "",
        "loc": loc,
        "at": at,
        "s": "s" if finding.side == "bilateral" else "",
        "device": _pick(devices, rng),
    }


def _location(finding: "Finding") -> tuple[str, str]:
    """Side and place as an adjective and as an adverb, see `report_phrases`."""
    side, place = finding.side or "", finding.place
    if place in phrases.STATIONS:
        adjective, one, both = phrases.STATIONS[place]
    elif place:
        adjective, one, both = place, f"in the {{}} {place}", f"in both {place}s"
    elif finding.name == "Pleural effusion":
        adjective, one, both = "", "on the {}", "on both sides"
    elif side:
        adjective = "" if side == "bilateral" else "lung"
        one, both = "in the {} lung", "in both lungs"
    else:
        adjective, one, both = "", "in the lungs", ""
    at = both if side == "bilateral" and both else one.format(side)
    return f"{side} {adjective}".strip(), at


def _fill(phrase: str, slots: dict[str, str]) -> str:
    """`phrase` with its slots filled, empty brackets dropped and articles mended."""

    def bracket(match: re.Match[str]) -> str:
        names = re.findall(r"\{(.*?)\}", match[1])
        return match[1] if all(slots[name] for name in names) else ""

    text = re.sub(r"\[(.*?)\]", bracket, phrase)
    text = re.sub(r"\{(.*?)\}", lambda match: slots[match[1]], text)
    text = re.sub(r" +", " ", text).strip().replace(" ,", ",")
    return re.sub(r"\b([Aa]) (?=[aeio]|8|11|18)", r"\1n ", text)


def _joined(sentences: list[str], terse: bool, rng: np.random.Generator) -> list[str]:
    """Now and then two short neighbours become one sentence: "A and b"."""
    result: list[str] = []
    for sentence in sentences:
        short = " and " not in sentence and len(sentence.split()) <= 5
        if result and short and rng.random() < JOIN:
            previous = result[-1]
            if " and " not in previous and len(previous.split()) <= 5:
                result[-1] = f"{previous} and {sentence}"
                continue
        result.append(sentence)
    return result


def _denials(present: set[str], sentences: list[str], rng: np.random.Generator) -> list[str]:
    allowed = [names for names in phrases.NEGATIONS if not present.intersection(names)]
    count = min(int(rng.integers(0, 4)), 8 - len(sentences), len(allowed))
    words = sum(len(sentence.split()) for sentence in sentences)
    denied: set[str] = set()
    result: list[str] = []
    for index in rng.permutation(len(allowed)):
        if len(result) >= count or words > MAX_WORDS:
            break
        names = allowed[index]
        if denied.intersection(names):
            continue
        denied.update(names)
        result.append(_pick(phrases.NEGATIONS[names], rng))
        words += len(result[-1].split())
    return result


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]

"""Reads a report back by rules: which findings it affirms or denies, with side, place, size.

Exact on the text of `report.py`; of free text it understands the same vocabulary. A clause is
a sentence, or half of one that joins two findings by "and".
"""

import dataclasses
import re

from data_pipelines.phantom.report_phrases import DEGREE, DEVICES, EXTENT, STATIONS

# The first pattern that matches names the finding of an affirmative clause.
PATTERNS: tuple[tuple[str, str], ...] = (
    ("Pericardial effusion", r"pericardi|effusion around the heart"),
    ("Pleural effusion", r"pleural (effusion|fluid|space)|pleural (or|and) pericardial"),
    ("Coronary artery wall calcification", r"coronar"),
    (
        "Arterial wall calcification",
        r"(aort|arterial).*(calcif|athero|plaque)|(calcif|plaque|athero).*(aort|arterial)",
    ),
    (
        "Cardiomegaly",
        r"cardiomegaly|heart .*enlarged|enlargement of the heart"
        r"|cardiac silhouette|heart size|cardiothoracic",
    ),
    ("Hiatal hernia", r"hiatal|hiatus"),
    ("Lymphadenopathy", r"adenopathy|lymph node|nodes|nodal"),
    ("Emphysema", r"emphysem"),
    ("Atelectasis", r"atelecta"),
    ("Lung nodule", r"nodul"),
    ("Lung opacity", r"ground-glass|hazy"),
    ("Pulmonary fibrotic sequela", r"fibrotic|fibrosis|scarring"),
    ("Mosaic attenuation pattern", r"mosaic"),
    ("Peribronchial thickening", r"peribronchial|bronchial wall"),
    ("Consolidation", r"consolidat"),
    ("Bronchiectasis", r"bronchiecta|dilated bronchi"),
    ("Interlobular septal thickening", r"sept(a|al)\b"),
    ("Medical material", r"pacemaker|catheter|\bline\b|wires|tube|valve|device|medical material"),
)
CLEAR_LUNGS = (
    "Emphysema",
    "Atelectasis",
    "Lung nodule",
    "Lung opacity",
    "Pulmonary fibrotic sequela",
    "Mosaic attenuation pattern",
    "Peribronchial thickening",
    "Consolidation",
    "Bronchiectasis",
    "Interlobular septal thickening",
)
NEGATED = r"^(there is )?no\b|^normal|\bnot\b|\bfree of\b|\bis normal|\babsent\b|\bwithout\b"
LUNGS_CLEAR = r"lungs are clear|lung parenchyma is normal"
SIZES = {
    word: size for scale in (EXTENT, DEGREE) for size, words in scale.items() for word in words
}


@dataclasses.dataclass(frozen=True)
class ParsedFinding:
    """One finding as the text states it; fields as in `case.Finding`, None when not stated."""

    name: str
    side: str | None = None
    place: str | None = None
    size: str | None = None
    size_mm: float | None = None


@dataclasses.dataclass(frozen=True)
class ParsedReport:
    """`findings` are affirmed; `denied` holds names of findings that the text rules out."""

    age: int | None
    sex: str | None
    findings: tuple[ParsedFinding, ...]
    denied: frozenset[str]

    @property
    def names(self) -> frozenset[str]:
        """Names of the affirmed findings."""
        return frozenset(finding.name for finding in self.findings)


def parse_report(text: str) -> ParsedReport:
    """Age, sex, affirmed and denied findings of a report; age and sex None when not stated."""
    head = re.match(r"\s*(\d+) years? old (male|female)\s*:\s*(.*)", text, re.S)
    body = head[3] if head else text
    findings: list[ParsedFinding] = []
    denied: set[str] = set()
    for sentence in re.split(r"[.;](?:\s+|$)", body.lower()):
        for clause in _clauses(sentence.strip()):
            names = _names(clause)
            if re.search(LUNGS_CLEAR, clause):
                denied.update(CLEAR_LUNGS)
            elif re.search(NEGATED, clause):
                denied.update(names)
            elif names:
                findings.append(_details(names[0], clause))
    age, sex = (int(head[1]), head[2]) if head else (None, None)
    return ParsedReport(age, sex, tuple(findings), frozenset(denied))


def _names(clause: str) -> list[str]:
    return [name for name, pattern in PATTERNS if re.search(pattern, clause)]


def _clauses(sentence: str) -> list[str]:
    halves = sentence.split(" and ")
    if len(halves) == 2 and not re.search(NEGATED, sentence) and all(map(_names, halves)):
        return halves
    return [sentence]


def _details(name: str, clause: str) -> ParsedFinding:
    side = re.search(r"\b(left|right)\b", clause)
    both = re.search(r"\b(bilateral(ly)?|both)\b", clause)
    words = (word.removesuffix("ly") for word in re.findall(r"[a-z-]+", clause))
    extent = re.search(r"(\d+(?:\.\d+)?) (mm|cm)\b", clause)
    return ParsedFinding(
        name=name,
        side="bilateral" if both else side[1] if side else None,
        place=_place(name, clause),
        size=next((SIZES[word] for word in words if word in SIZES), None),
        size_mm=float(extent[1]) * (10 if extent[2] == "cm" else 1) if extent else None,
    )


def _place(name: str, clause: str) -> str | None:
    lobe = re.search(r"\b(upper|middle|lower) lobe", clause)
    if lobe:
        return f"{lobe[1]} lobe"
    if name == "Medical material":
        words = DEVICES
    elif name == "Lymphadenopathy":
        words = {
            station: tuple(form.split()[-1] for form in forms if form)
            for station, forms in STATIONS.items()
        }
    else:
        return None
    for place, forms in words.items():
        if any(re.search(rf"\b{form}\b", clause) for form in forms):
            return place
    return None

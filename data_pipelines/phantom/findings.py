"""The 18 CT-RATE abnormalities as words, and how often and where they occur in the phantom."""

import dataclasses

import numpy as np

from data_pipelines.labels import LABELS
from gct_jax.errors import InputError

FINDINGS = LABELS
SIZES = ("small", "moderate", "large")
SEVERITY = {"small": (0.1, 0.35), "moderate": (0.35, 0.7), "large": (0.7, 1.0)}
# Extent in mm at severity 0 and 1 of the findings that a report measures.
EXTENT_MM = {
    "Pericardial effusion": (6.0, 24.0),
    "Hiatal hernia": (30.0, 80.0),
    "Lymphadenopathy": (12.0, 32.0),
    "Lung nodule": (6.0, 32.0),
    "Pleural effusion": (12.0, 100.0),
}
DEVICES = (
    "pacemaker",
    "port catheter",
    "central venous catheter",
    "endotracheal tube",
    "prosthetic valve",
    "set of sternal wires",
)
LOBES = ("upper lobe", "middle lobe", "lower lobe")  # the middle lobe exists on the right only
# Places of a finding with their weights; a finding that is not listed has neither side nor place.
PLACES: dict[str, dict[str | None, float]] = {
    "Medical material": {device: 1.0 for device in DEVICES},
    "Lymphadenopathy": {"mediastinal": 2.0, "hilar": 1.0, "axillary": 1.0},
    "Emphysema": {"upper lobe": 3.0, "lower lobe": 0.6, None: 1.0},
    "Atelectasis": {"lower lobe": 4.0, "middle lobe": 0.7, "upper lobe": 0.6},
    "Lung nodule": {"upper lobe": 1.0, "middle lobe": 0.4, "lower lobe": 1.0},
    "Lung opacity": {"upper lobe": 1.0, "middle lobe": 0.4, "lower lobe": 1.0},
    "Pulmonary fibrotic sequela": {"upper lobe": 3.0, "middle lobe": 0.3, "lower lobe": 1.0},
    "Pleural effusion": {None: 1.0},
    "Peribronchial thickening": {"lower lobe": 2.0, "upper lobe": 1.0, None: 1.0},
    "Consolidation": {"upper lobe": 1.0, "middle lobe": 0.5, "lower lobe": 1.5},
    "Bronchiectasis": {"lower lobe": 3.0, "upper lobe": 1.0, "middle lobe": 0.6},
    "Interlobular septal thickening": {"upper lobe": 1.0, "lower lobe": 1.5, None: 1.0},
}
NO_SIDE = ("Medical material",)  # the place alone says where
BILATERAL = {  # chance that a finding with a side is on both, 0.2 where not listed
    "Emphysema": 0.6,
    "Pleural effusion": 0.25,
    "Peribronchial thickening": 0.5,
    "Interlobular septal thickening": 0.5,
    "Lung nodule": 0.0,
}
NORMAL = 0.09  # share of cases that are normal by decision; chance adds a few more
PREVALENCE = 0.16


@dataclasses.dataclass(frozen=True)
class Finding:
    """One abnormality as a radiologist would state it.

    Attributes:
      name: one of `FINDINGS`.
      side: "left", "right", "bilateral", or None for a finding without a side.
      place: a lobe, a lymph node station, a device, or None.
      size: "small", "moderate", "large", or None.
      severity: 0 (barely there) to 1 (extreme); refines `size`.
      size_mm: depth of fluid, diameter of a nodule or hernia, short axis of a node; else None.
    """

    name: str
    side: str | None = None
    place: str | None = None
    size: str | None = None
    severity: float = 0.5
    size_mm: float | None = None


def sides_of(finding: Finding) -> tuple[int, ...]:
    """Sides as indices, 0 right and 1 left; empty for a finding without a side."""
    sides = {"right": (0,), "left": (1,), "bilateral": (0, 1), None: ()}
    if finding.side not in sides:
        raise InputError(f"{finding.name}: side {finding.side!r} is not left, right or bilateral")
    return sides[finding.side]


def sample_findings(rng: np.random.Generator, age: int) -> tuple[Finding, ...]:
    """Draws the findings of one patient, each name at most once, in the order of `FINDINGS`."""
    if rng.random() < NORMAL:
        return ()
    chance = dict.fromkeys(FINDINGS, PREVALENCE)
    ageing = np.clip((age - 30) / 30, 0.3, 1.7)
    for name in ("Arterial wall calcification", "Coronary artery wall calcification"):
        chance[name] *= ageing
    present: set[str] = set()
    for name in rng.permutation(np.array(FINDINGS)).tolist():
        if rng.random() < chance[name]:
            present.add(name)
            for first, second in (
                ("Pleural effusion", "Atelectasis"),
                ("Cardiomegaly", "Pleural effusion"),
                ("Pericardial effusion", "Pleural effusion"),
                ("Arterial wall calcification", "Coronary artery wall calcification"),
            ):
                if name in (first, second):
                    chance[first] *= 1.5
                    chance[second] *= 1.5
    return tuple(sample_finding(rng, name) for name in FINDINGS if name in present)


def sample_finding(
    rng: np.random.Generator,
    name: str,
    side: str | None = None,
    place: str | None = None,
    size: str | None = None,
) -> Finding:
    """Draws what is not given of one finding."""
    if name not in FINDINGS:
        raise InputError(f"finding {name!r} is not one of: {', '.join(FINDINGS)}")
    places = PLACES.get(name)
    if places and place is None:
        options = [p for p in places if p != "middle lobe" or side not in ("left", "bilateral")]
        weights = np.array([places[p] for p in options])
        place = options[rng.choice(len(options), p=weights / weights.sum())]
    if places and side is None and name not in NO_SIDE and place != "mediastinal":
        if place == "middle lobe":
            side = "right"
        elif rng.random() < BILATERAL.get(name, 0.2):
            side = "bilateral"
        else:
            side = ("left", "right")[rng.integers(2)]
    if name == "Medical material":
        return Finding(name, side, place, None, float(rng.uniform(0.3, 0.9)))
    if size is None:
        size = SIZES[rng.choice(3, p=(0.3, 0.4, 0.3))]
    severity = float(rng.uniform(*SEVERITY[size]))
    extent = EXTENT_MM.get(name)
    size_mm = extent and round(extent[0] + severity * (extent[1] - extent[0]))
    return Finding(name, side, place, size, severity, size_mm)

"""Draws the healthy body of a patient: every array that `render` needs, in mm and HU.

Axes: x right to left, y front to back, z feet to head, origin in the middle of the volume. The
shapes of the arrays never depend on the patient, so patients can be stacked.
"""

from typing import Any

import numpy as np

from data_pipelines.phantom import skeleton, vessels
from data_pipelines.phantom.findings import Finding, sides_of
from data_pipelines.phantom.heart import chambers_of, sample_heart
from data_pipelines.phantom.shapes import make_ellipsoid
from data_pipelines.phantom.texture import sample_waves

LOBULE_MM = 19.0  # spacing of the septa between secondary lobules
LEVELS_MM = np.linspace(-160, 160, 65).astype(np.float32)
# Profiles along the body at these heights for the average man, mm.
KNOTS_MM = (-150, -110, -70, -30, 10, 45, 75, 100, 125, 150)
PROFILES = {
    "body_half_width": (138, 145, 150, 152, 154, 158, 162, 164, 166, 168),
    "body_half_depth": (112, 116, 118, 117, 112, 100, 92, 80, 72, 66),
    "body_y": (6, 5, 5, 6, 8, 14, 19, 26, 27, 26),
    "cage_half_width": (122, 130, 134, 135, 131, 123, 109, 94, 80, 70),
    "cage_half_depth": (89, 95, 96, 94, 88, 79, 68, 56, 45, 38),
    "cage_y": (-1, -2, -3, -2, 1, 7, 13, 22, 28, 32),
    "septum": (6, 6, 6, 7, 8, 9, 13, 18, 22, 24),
    "septum_bulge": (14, 14, 14, 16, 26, 24, 18, 12, 8, 6),
    "spine_y": (50, 54, 58, 61, 63, 64, 62, 58, 52, 44),
    "sternum_half_width": (0, 0, 0, 12, 16, 15, 19, 28, 0, 0),
}
WIDTHS = ("body_half_width", "cage_half_width")
DEPTHS = ("body_half_depth", "cage_half_depth", "body_y", "cage_y", "spine_y")


def sample_patient(
    rng: np.random.Generator, age: int, sex: str, findings: tuple[Finding, ...]
) -> dict[str, np.ndarray]:
    """A body with the heart size and diaphragm that the findings imply, and nothing else.

    Args:
      rng: draws the body; apart from the lungs' vessels the draws do not depend on the findings.
      age: years; the aorta widens and the spine loses density.
      sex: "male" or "female".
      findings: only cardiomegaly and atelectasis are read here.
    """
    female = sex == "female"
    patient: dict[str, Any] = {"levels_mm": LEVELS_MM}
    fat = rng.gamma(6.0, 2.4) + (6 if female else 3)
    width = rng.normal(0.925 if female else 0.985, 0.025)
    depth = rng.normal(0.94 if female else 1.0, 0.035) + 0.002 * (fat - 15)
    for name, values in PROFILES.items():
        factor = width if name in WIDTHS else depth if name in DEPTHS else 1.0
        patient[name] = factor * _smooth(np.interp(LEVELS_MM, KNOTS_MM, values))
    _scalars(patient, rng, fat=min(fat, 176 / width - 155), age=age, female=female)
    patient["table_y"] = np.max(patient["body_y"] + patient["body_half_depth"]) + patient["fat"] + 3
    dome = rng.normal((-62, -72), 9)
    large = {finding.name: finding for finding in findings}
    if "Atelectasis" in large:
        for side in sides_of(large["Atelectasis"]):
            dome[side] += 8 + 22 * large["Atelectasis"].severity
    patient["dome_top"] = dome
    patient["apex"] = rng.normal(126, 4)
    patient["oblique"] = np.array([rng.normal(-28, 6), rng.normal(4, 5)])
    patient["horizontal"] = rng.normal(8, 6)
    ratio = rng.uniform(0.39, 0.47)
    if "Cardiomegaly" in large:
        ratio = 0.54 + 0.12 * large["Cardiomegaly"].severity
    patient["heart"] = sample_heart(patient, rng, ratio)
    patient["chambers"] = chambers_of(patient["heart"])
    patient["septa"] = np.linalg.qr(rng.normal(size=(3, 3)))[0] / LOBULE_MM
    patient |= _abdomen(dome[1], rng)
    patient |= skeleton.sample_skeleton(patient, rng)
    patient |= vessels.sample_great_vessels(patient, rng, age)
    patient["waves"] = sample_waves(rng)
    patient["noise_seed"] = rng.integers(2**32, dtype=np.uint32)
    # Last, because the number of draws depends on the room that the heart leaves.
    patient |= vessels.sample_lung_trees(patient, rng)
    return {
        name: np.asarray(value, np.uint32 if name == "noise_seed" else np.float32)
        for name, value in patient.items()
    }


def _scalars(patient, rng, *, fat: float, age: int, female: bool) -> None:
    patient["fat"] = fat
    patient["muscle"] = rng.uniform(0.8, 1.2) * (0.8 if female else 1.0)
    patient["breast"] = rng.uniform(0.6, 1.2) if female else 0.0
    patient["gland"] = np.clip(rng.normal(0.9 - age / 80, 0.4), -1, 1)
    patient["rotation"] = rng.normal(0, 0.035)
    patient["shift"] = rng.normal((0, 4, 0), (4, 4, 6))
    height = rng.normal(0, 1.6, (2, 3, 1))
    patient["bend"] = np.concatenate([height, rng.uniform(0, 2 * np.pi, (2, 3, 3))], -1)
    contrast = rng.random() < 0.35
    boost = rng.uniform(110, 190)
    patient["blood_hu"] = 42 + boost * contrast + rng.normal(0, 3)
    patient["muscle_hu"] = 52 + 8 * contrast + rng.normal(0, 3)
    patient["heart_muscle_hu"] = 45 + 50 * contrast
    patient["liver_hu"] = rng.normal(58, 6) + 45 * contrast
    patient["spleen_hu"] = 50 + 60 * contrast
    patient["fat_hu"] = rng.normal(-102, 4)
    patient["marrow_hu"] = np.clip(rng.normal(300 - 2.2 * age, 30), 70, 280)
    patient["lung_hu"] = rng.normal(-852, 16)
    patient["gravity_hu"] = rng.uniform(30, 80)
    patient["noise_hu"] = rng.uniform(9, 20)


def _smooth(values: np.ndarray) -> np.ndarray:
    kernel = np.hanning(9)[1:-1]
    return np.convolve(np.pad(values, 3, "edge"), kernel / kernel.sum(), "valid")


def _abdomen(dome: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    stomach = rng.normal((62, -22, dome - 54), (6, 6, 4))
    spleen = rng.normal((92, 48, dome - 48), (5, 5, 4))
    return {
        "stomach": make_ellipsoid(stomach, rng.normal((38, 42, 34), 4)),
        "spleen": make_ellipsoid(spleen, rng.normal((24, 42, 38), 3)),
        "stomach_gas": stomach[1] - rng.uniform(2, 26),
        "liver_edge": rng.normal(30, 8),
    }

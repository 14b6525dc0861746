"""What the demo evaluation measures, from volumes in HU; every result is a plain dict for JSON."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.ndimage import zoom
from tqdm import tqdm

from data_pipelines.phantom.case import Case, Description
from data_pipelines.phantom.detector_fit import sides_of_all
from data_pipelines.phantom.detectors import SIDED, Detection, detect
from data_pipelines.phantom.findings import FINDINGS, Finding
from gct_jax.evaluation.auroc import auroc_interval
from gct_jax.evaluation.image_quality import psnr, ssim

AGE, SEX = 62, "male"
GOOD_AUROC = 0.9


@dataclasses.dataclass(frozen=True)
class Swap:
    """Two prompts that differ in `finding`; `by_side` when only in its side (left, then right).

    `findings` are those of the first prompt, with which phantoms are rendered for comparison.
    """

    before: str
    after: str
    finding: str
    by_side: bool
    findings: tuple[Finding, ...]

    @property
    def prompts(self) -> tuple[str, str]:
        """Both prompts, of the same patient."""
        return (f"{AGE} years old {SEX}: {self.before}", f"{AGE} years old {SEX}: {self.after}")

    def value(self, detection: Detection) -> float:
        """Evidence that rises from the first to the second prompt if the text is followed."""
        if self.by_side:
            return -detection.left_minus_right[self.finding]
        return detection.score[self.finding]


SWAPS = (
    Swap(
        "Large left pleural effusion.",
        "Large right pleural effusion.",
        "Pleural effusion",
        True,
        (Finding("Pleural effusion", "left", None, "large", 0.85, 87),),
    ),
    Swap(
        "Severe left lower lobe consolidation.",
        "Severe right lower lobe consolidation.",
        "Consolidation",
        True,
        (Finding("Consolidation", "left", "lower lobe", "large", 0.85),),
    ),
    Swap("Normal chest CT.", "Severe cardiomegaly.", "Cardiomegaly", False, ()),
    Swap(
        "Moderate cardiomegaly.",
        "Moderate cardiomegaly. Severe emphysema in both lungs.",
        "Emphysema",
        False,
        (Finding("Cardiomegaly", None, None, "moderate", 0.5),),
    ),
)


def detect_all(volumes_hu: np.ndarray, spacing_mm: tuple, title: str) -> list[Detection]:
    """Detections of [n, depth, height, width]."""
    return [detect(volume, spacing_mm) for volume in tqdm(volumes_hu, title)]


def finding_rows(
    cases: Sequence[Case], detections: Mapping[str, Sequence[Detection]], seed: int
) -> list[dict]:
    """Per finding: AUROC with its 95 % interval for each source of volumes."""
    rng = np.random.default_rng(seed)
    rows = []
    for index, name in enumerate(FINDINGS):
        labels = np.array([case.labels[index] for case in cases])
        row: dict = {"finding": name, "positives": int(labels.sum())}
        for source, found in detections.items():
            scores = np.array([detection.score[name] for detection in found])
            row[source] = auroc_interval(labels, scores, rng)._asdict()
        rows.append(row)
    return rows


def side_rows(
    cases: Sequence[Case | Description], detections: Mapping[str, Sequence[Detection]]
) -> list[dict]:
    """Per finding asked on exactly one side: how often the evidence is greater on that side."""
    rows = []
    for name in SIDED:
        asked = [(i, side) for i, side in enumerate(sides_of_all(cases, name)) if side]
        row: dict = {"finding": name, "asked": len(asked)}
        for source, found in detections.items():
            row[source] = sum(
                (found[number].left_minus_right[name] > 0) == (side == "left")
                for number, side in asked
            )
        rows.append(row)
    return rows


def fidelity(findings: Sequence[dict], sides: Sequence[dict]) -> dict:
    """How well generated volumes follow their prompts, in a few numbers over all findings.

    Args:
      findings, sides: what `finding_rows` and `side_rows` say of them.
    """
    values = [row["generated"]["value"] for row in findings]
    return {
        "good": sum(value >= GOOD_AUROC for value in values),
        "mean_auroc": float(np.nanmean(values)),
        "side_correct": sum(row["generated"] for row in sides),
        "side_asked": sum(row["asked"] for row in sides),
    }


def quality(references_hu: np.ndarray, others_hu: np.ndarray) -> dict:
    """PSNR and SSIM of pairs of volumes or slices: means and standard deviations."""
    pairs = [
        (reference.astype(np.float32), other.astype(np.float32))
        for reference, other in zip(references_hu, others_hu, strict=True)
    ]
    decibels = [psnr(*pair) for pair in pairs]
    similarity = [ssim(*pair) for pair in pairs]
    return {
        "pairs": len(pairs),
        "psnr": float(np.mean(decibels)),
        "psnr_sd": float(np.std(decibels)),
        "ssim": float(np.mean(similarity)),
        "ssim_sd": float(np.std(similarity)),
    }


def interpolate(slices_hu: np.ndarray, size: int) -> np.ndarray:
    """Slices [n, h, w] enlarged by linear interpolation between pixel centres."""
    factor = size / slices_hu.shape[-1]
    return zoom(
        slices_hu.astype(np.float32), (1, factor, factor), order=1, mode="nearest", grid_mode=True
    )


def swap_row(swap: Swap, before_hu: np.ndarray, after_hu: np.ndarray, spacing_mm: tuple) -> dict:
    """Effect of exchanging the prompt at the same seed, against that of another seed.

    Args:
      swap: what is exchanged.
      before_hu, after_hu: [seeds, depth, height, width] of the first and the second prompt.
    """
    first, second = (
        np.array([swap.value(detect(volume, spacing_mm)) for volume in volumes])
        for volumes in (before_hu, after_hu)
    )
    changes = [mean_change(a, b) for a, b in zip(before_hu, after_hu, strict=True)]
    other = np.roll(before_hu, 1, axis=0)
    return {
        "before": swap.before,
        "after": swap.after,
        "measured": swap.finding + (", right minus left" if swap.by_side else ""),
        "score_before": float(first.mean()),
        "score_after": float(second.mean()),
        "followed": int((second > first).sum()),
        "seeds": len(first),
        "change_hu": float(np.mean(changes)),
        "other_seed_hu": float(
            np.mean([mean_change(a, b) for a, b in zip(before_hu, other, strict=True)])
        ),
    }


def diversity_row(title: str, generated_hu: np.ndarray, phantoms_hu: np.ndarray) -> dict:
    """Mean difference and SSIM over all pairs of seeds, generated and rendered."""
    row: dict = {"prompt": title, "seeds": len(generated_hu)}
    for source, volumes in (("generated", generated_hu), ("phantom", phantoms_hu)):
        pairs = list(itertools.combinations(volumes.astype(np.float32), 2))
        row[source] = {
            "change_hu": float(np.mean([mean_change(*pair) for pair in pairs])),
            "ssim": float(np.mean([ssim(*pair) for pair in pairs])),
        }
    return row


def mean_change(first_hu: np.ndarray, second_hu: np.ndarray) -> float:
    """Mean absolute difference in HU."""
    return float(np.mean(np.abs(first_hu.astype(np.float32) - second_hu)))

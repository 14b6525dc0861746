"""CT-RATE as it is downloaded (Hamamci et al. 2024), in either version of its volumes.

    data.root/dataset/train_fixed/train_1/train_1_a/train_1_a_1.nii.gz        values in HU    (v2)
    data.root/dataset/train/...                               values as the scanner's          (v1)
    data.root/dataset/radiology_text_reports/*.csv            Findings_EN, Impressions_EN
    data.root/dataset/metadata/*.csv                          spacing, slope, intercept, age, sex
    data.root/dataset/multi_abnormality_labels/*.csv          the 18 findings

Volumes of version 1 are scaled with the slope and intercept of the metadata, those of version 2
never; values that are HU already are left alone in either. Of a volume that is there in both,
version 2 is taken. Any part of the download will do; `data.exclude` names files that list what to
leave out (a volume, a scan or a patient on each line), as the authors publish one for scans without
a chest.
"""

import ast
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.cases import Case, ListedSource, Listing, Reading, Rejected
from data_pipelines.folder import parse_labels
from data_pipelines.paths import leaves, walk
from data_pipelines.patients import clean_text, parse_age, parse_sex
from data_pipelines.source import HELD_OUT, TRAINING
from data_pipelines.tables import read_table
from gct_jax.errors import ConfigError, InputError
from gct_jax.training.config import DataConfig

SPLITS = {"train": TRAINING, "valid": HELD_OUT}
NAME = re.compile(r"((?:train|valid)_\d+)_([a-z]+)_(\d+)\.nii\.gz")
TABLES = {
    "radiology_text_reports": ("VolumeName", "Findings_EN", "Impressions_EN"),
    "metadata": ("VolumeName", "RescaleSlope", "RescaleIntercept", "XYSpacing", "ZSpacing"),
    "multi_abnormality_labels": ("VolumeName",),
}
TEXTS = {
    "findings": ("Findings_EN",),
    "impressions": ("Impressions_EN",),
    "both": ("Findings_EN", "Impressions_EN"),
}
STORED_AXES, HEAD_FIRST_AXES = "LPS", "LPI"
HEAD_FIRST = "PNMS"  # whose slices go from head to feet
Cells = Mapping[str, str]


class CTRateSource(ListedSource):
    """The volumes below `data.root`, split as CT-RATE splits them.

    Raises:
      ConfigError: no such folder, no usable volume, or a table that cannot be read.
    """

    names_are_public = True

    def __init__(self, data: DataConfig):
        root = Path(data.root)
        if not data.root or not root.is_dir():
            raise ConfigError(f"data.root = {data.root!r} is no folder of CT-RATE")
        base = root / "dataset" if (root / "dataset").is_dir() else root
        tables: dict[str, dict[str, Cells]] = {}
        facts: dict[str, Any] = {}
        bad: list[Rejected] = []
        for name, columns in TABLES.items():
            tables[name], hashes, unusable = _tables(base / name, columns)
            facts[name] = hashes
            bad += unusable
        excluded = read_exclusions(data.exclude)
        listing = list_ct_rate(base, tables, excluded, data.text, data.one_per_scan)
        facts |= {"text": data.text, "excluded": len(excluded), **listing.facts}
        rejected = tuple(sorted((*listing.rejected, *bad)))
        super().__init__(Listing(listing.cases, rejected, facts), data.cases)


def _tables(
    folder: Path, columns: tuple[str, ...]
) -> tuple[dict[str, Cells], dict[str, str], list[Rejected]]:
    """Rows by volume of all tables in a folder, the tables' hashes, and rows that are unusable."""
    rows: dict[str, Cells] = {}
    hashes: dict[str, str] = {}
    rejected: list[Rejected] = []
    for path in sorted(folder.glob("*.csv")):
        for row in read_table(path, columns):
            name = row.cells.get("VolumeName", "").strip()
            if row.reason or not NAME.fullmatch(name):
                rejected.append(
                    Rejected(f"{path.name}, line {row.line}", row.reason or "names no volume")
                )
            elif name in rows and dict(rows[name]) != row.cells:
                rejected.append(Rejected(f"{path.name}, line {row.line}", f"{name} comes again"))
            else:
                rows[name] = row.cells
        hashes[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return rows, hashes, rejected


def read_exclusions(files: Sequence[str]) -> frozenset[str]:
    """Names of volumes, scans or patients: the first word or cell of each line.

    Raises:
      ConfigError: a file cannot be read.
    """
    names: set[str] = set()
    for file in files:
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read data.exclude {file}: {error}") from None
        words = [re.split(r"[,;\s]", line.strip())[0].strip("\"'") for line in lines]
        names |= {word.removesuffix(".nii.gz") for word in words if word}
    return frozenset(names - {"VolumeName"})


def list_ct_rate(
    base: Path,
    tables: Mapping[str, Mapping[str, Cells]],
    excluded: frozenset[str],
    text: str,
    one_per_scan: bool,
) -> Listing:
    """The volumes below `base` with what the tables say of them."""
    cases: list[Case] = []
    rejected: list[Rejected] = []
    versions: dict[str, int] = {"v1": 0, "v2": 0}
    scans: set[str] = set()
    for prefix, split in SPLITS.items():
        newer = list(_volumes(base, base / f"{prefix}_fixed", rejected))
        there = {path.name for path, _ in newer}
        older = _volumes(base, base / prefix, rejected)
        volumes = [(*volume, True) for volume in newer]
        volumes += [(*volume, False) for volume in older if volume[0].name not in there]
        for path, name, fixed in sorted(volumes, key=lambda volume: volume[0].name):
            found = NAME.fullmatch(path.name)
            if not found or found[1].split("_")[0] != prefix:
                rejected.append(Rejected(name, f"its name is not {prefix}_N_SCAN_N.nii.gz"))
                continue
            patient, scan = found[1], f"{found[1]}_{found[2]}"
            volume = path.name.removesuffix(".nii.gz")
            if excluded & {patient, scan, volume}:
                rejected.append(Rejected(name, "excluded"))
                continue
            if one_per_scan and scan in scans:
                rejected.append(Rejected(name, "another reconstruction of a scan"))
                continue
            cells = [tables[table].get(path.name, {}) for table in TABLES]
            try:
                case = _case(base, path, (patient, scan, split), cells, text, fixed)
            except InputError as error:
                rejected.append(Rejected(name, str(error)))
                continue
            scans.add(scan)
            versions["v2" if fixed else "v1"] += 1
            cases.append(case)
    return Listing(tuple(cases), tuple(rejected), {"versions": versions})


def _volumes(base: Path, folder: Path, rejected: list[Rejected]) -> Iterator[tuple[Path, str]]:
    if not folder.is_dir():
        return
    for inner, files, reason in walk(folder):
        if reason:
            rejected.append(Rejected(inner.relative_to(base).as_posix(), reason))
        for file in files:
            if not file.exists():
                rejected.append(Rejected(file.relative_to(base).as_posix(), "a link to nothing"))
                continue
            yield file, file.relative_to(base).as_posix()


def _case(
    base: Path,
    path: Path,
    belongs: tuple[str, str, str],
    cells: Sequence[Cells],
    text: str,
    fixed: bool,
) -> Case:
    reports, metadata, labels = cells
    notes = ["a link leads out of the folder"] if leaves(base, path) else []
    parts = [clean_text(reports.get(column)) for column in TEXTS[text]]
    if not any(parts):
        notes.append("it has no report")
    rescale = None
    if not fixed:
        try:
            rescale = float(metadata["RescaleSlope"]), float(metadata["RescaleIntercept"])
        except (KeyError, ValueError):
            raise InputError(
                "the metadata state no slope and intercept, which volumes of version 1 need"
            ) from None
    reversed_slices = not fixed and metadata.get("Manufacturer", "").strip() == HEAD_FIRST
    axes = HEAD_FIRST_AXES if reversed_slices else STORED_AXES
    patient, scan, split = belongs
    return Case(
        path.relative_to(base).as_posix(),
        (path,),
        patient,
        scan,
        split,
        " ".join(part for part in parts if part),
        parse_age(metadata.get("PatientAge")),
        parse_sex(metadata.get("PatientSex")),
        parse_labels(dict(labels)) if labels else None,
        Reading(expected_mm=stated_spacing(metadata), rescale=rescale, default_axes=axes),
        tuple(notes),
    )


def stated_spacing(metadata: Cells) -> tuple[float, float, float] | None:
    """(depth, height, width) in mm of the columns ZSpacing and XYSpacing ("[0.68, 0.68]"); None if
    one is missing or senseless: then the file's own counts."""
    try:
        height, width = (float(x) for x in ast.literal_eval(metadata["XYSpacing"]))
        depth = float(metadata["ZSpacing"])
    except (KeyError, ValueError, SyntaxError, TypeError):
        return None
    usable = all(0.05 < value < 20 for value in (depth, height, width))
    return (depth, height, width) if usable else None

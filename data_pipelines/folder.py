"""Your own CTs: a folder of NIfTI files and DICOM series, with a table of reports beside it.

    data.root       the folder, with any folders within it
    data.reports    a CSV file with the columns
                    path        of the file or the DICOM folder, below data.root
                    report      the text
                    and, if you have them, patient, scan, age, sex, split ("train" or
                    "validation"), series (number, of a DICOM folder that holds several),
                    spacing_mm ("DEPTHxHEIGHTxWIDTH", instead of the file's), form ("sform"
                    or "qform", where the two disagree), and any of the 18 findings by its
                    name, 0 or 1

Without a table every CT is a case without a report, which CT-ViT can train on. Without a column
"patient" a CT in a folder belongs to the patient of that name (the first below data.root), a DICOM
series to its Patient ID. Without "split" whole patients are held out.
"""

from collections import defaultdict
from pathlib import Path

from data_pipelines.cases import (
    Case,
    ListedSource,
    Listing,
    Reading,
    Rejected,
    hold_out,
)
from data_pipelines.labels import LABELS
from data_pipelines.paths import leaves, named_path, walk
from data_pipelines.patients import clean_text, parse_age, parse_sex
from data_pipelines.source import HELD_OUT, TRAINING
from data_pipelines.tables import Row, read_table
from gct_jax.errors import ConfigError, InputError
from gct_jax.notes import tell
from gct_jax.training.config import DataConfig
from gct_jax.volumes.dicom import Series, find_series, is_dicom

REQUIRED = ("path", "report")
OPTIONAL = (
    *("patient", "scan", "age", "sex", "split", "series", "spacing_mm", "form"),
    *LABELS,
)
MOST_HELD_OUT, LEAST_TRAINING = 16, 5  # where no number is asked for: one of five at most
NIFTI = (".nii", ".nii.gz", ".hdr")
NO_CT = (".csv", ".json", ".xlsx", ".txt", ".md", ".img", ".img.gz")
SPLITS = {
    **dict.fromkeys(("train", "training"), TRAINING),
    **dict.fromkeys(("valid", "validation", "val", "held_out"), HELD_OUT),
}


class FolderSource(ListedSource):
    """The CTs below `data.root`.

    Raises:
      ConfigError: no such folder or table, or no usable CT.
    """

    def __init__(self, data: DataConfig):
        root = Path(data.root)
        if not data.root or not root.is_dir():
            raise ConfigError(f"data.root = {data.root!r} is no folder of CTs")
        rows = read_table(data.reports, REQUIRED, OPTIONAL) if data.reports else None
        unknown = sorted(set(rows[0].cells) - {*REQUIRED, *OPTIONAL}) if rows else []
        if unknown:
            tell(f"{data.reports}: columns that say nothing here: {', '.join(unknown)}")
        listing = list_folder(root, rows, data.held_out)
        super().__init__(
            listing._replace(facts={**listing.facts, "columns left out": unknown}), data.cases
        )


def list_folder(root: Path, rows: list[Row] | None, held_out: int) -> Listing:
    """What lies below `root`, with what the table says of it.

    rows: of the table; None: there is none, and every CT counts. held_out: 0 for 16 cases, or a
      fifth if that is less.

    Raises:
      ConfigError: the table has a patient in both splits.
    """
    found, rejected = _find(root)
    if rows is None:
        cases = [case for series in found.values() for case in series]
    else:
        cases, more = _join(root, found, rows)
        rejected += more
    stated = [case for case in cases if case.split]
    if stated and len(stated) < len(cases):
        rejected += [Rejected(case.name, "no split, and others have one") for case in cases
                     if not case.split]  # fmt: skip
        cases = stated
    listed = tuple(sorted(cases, key=lambda case: case.name))
    if not stated:
        share = max(1, len(listed) // LEAST_TRAINING)
        listed = hold_out(listed, held_out or min(MOST_HELD_OUT, share))
    _require_apart(listed)
    facts = {"tables": 0 if rows is None else 1, "rows": 0 if rows is None else len(rows)}
    return Listing(listed, tuple(sorted(rejected)), facts)


def _require_apart(cases: tuple[Case, ...]) -> None:
    first: dict[str, Case] = {}
    for case in cases:
        other = first.setdefault(case.patient, case)
        if other.split != case.split:
            raise ConfigError(
                f"{other.name} and {case.name} are of one patient but in both splits; correct the "
                "table's column 'split'"
            )


def _find(root: Path) -> tuple[dict[str, list[Case]], list[Rejected]]:
    """The CTs below `root`, by the path of their file or DICOM folder."""
    found: dict[str, list[Case]] = {}
    rejected: list[Rejected] = []
    for folder, files, reason in walk(root):
        name = folder.relative_to(root).as_posix()
        if reason:
            rejected.append(Rejected(name, reason))
        for file in [file for file in files if not file.exists()]:
            rejected.append(Rejected(file.relative_to(root).as_posix(), "a link to nothing"))
        files = [file for file in files if file.exists()]
        dicom = [file for file in files if not file.name.endswith((*NIFTI, *NO_CT))]
        dicom = [file for file in dicom if file.name != "DICOMDIR" and is_dicom(file)]
        if dicom:
            try:
                found[name] = [
                    _dicom_case(root, name, series) for series in find_series(dicom)
                    if not _refused(name, series, rejected)
                ]  # fmt: skip
            except InputError as error:
                rejected.append(Rejected(name, str(error).replace(str(root), "").lstrip("/")))
        for file in files:
            own = file.relative_to(root).as_posix()
            if file.name.endswith(NIFTI):
                found[own] = [_nifti_case(root, own, file)]
            elif file not in dicom and not file.name.endswith(NO_CT):
                rejected.append(Rejected(own, "neither NIfTI nor DICOM"))
    return found, rejected


def _refused(name: str, series: Series, rejected: list[Rejected]) -> bool:
    if series.reason:
        rejected.append(Rejected(f"{name}#{series.number}", series.reason))
    return series.reason is not None


def _nifti_case(root: Path, name: str, file: Path) -> Case:
    patient = name.split("/")[0] if "/" in name else name
    notes = ("a link leads out of the folder",) if leaves(root, file) else ()
    return Case(name, (file,), patient, name, "", notes=notes)


def _dicom_case(root: Path, name: str, series: Series) -> Case:
    notes = ("a link leads out of the folder",) if leaves(root, series.files[0]) else ()
    return Case(
        f"{name}#{series.number}",
        series.files,
        series.patient or name,
        series.study or name,
        "",
        age=parse_age(series.age),
        sex=parse_sex(series.sex),
        notes=notes,
    )


def _join(
    root: Path, found: dict[str, list[Case]], rows: list[Row]
) -> tuple[list[Case], list[Rejected]]:
    """Cases with what their rows say; files without a row and rows without a file are left out."""
    cases: list[Case] = []
    rejected: list[Rejected] = []
    named: dict[str, list[Row]] = defaultdict(list)
    used: set[str] = set()
    for row in rows:
        path = row.cells.get("path", "").strip() or f"line {row.line}"
        if row.reason:
            rejected.append(Rejected(_printable(path), row.reason))
            used.add(path)
            continue
        try:
            full = named_path(root, path)
        except InputError as error:
            rejected.append(Rejected(path, str(error)))
            continue
        named[f"{full.relative_to(root).as_posix()}#{row.cells.get('series', '').strip()}"].append(
            row
        )
    for key, same in named.items():
        path, _, series = key.rpartition("#")
        candidates = [
            case for case in found.get(path, [])
            if not series or case.name.rpartition("#")[2] == series
        ]  # fmt: skip
        used.add(path)
        if any(row.cells != same[0].cells for row in same):
            lines = ", ".join(str(row.line) for row in same)
            rejected.append(Rejected(path, f"lines {lines} say different things of it"))
        elif not candidates:
            reason = "no CT" if path in found else "neither NIfTI nor a folder of DICOM files"
            rejected.append(Rejected(path, reason if not series else f"no CT series {series}"))
        elif len(candidates) > 1:
            numbers = ", ".join(case.name.rpartition("#")[2] for case in candidates)
            rejected.append(
                Rejected(path, f"holds series {numbers}; say which in a column 'series'")
            )
        else:
            try:
                cases.append(_described(candidates[0], same[0]))
            except InputError as error:
                rejected.append(Rejected(path, f"line {same[0].line}: {error}"))
    rejected += [
        Rejected(case.name, "not in the table")
        for path, known in found.items()
        if path not in used
        for case in known
    ]
    return cases, rejected


def _described(case: Case, row: Row) -> Case:
    cells = {name: value.strip() for name, value in row.cells.items()}
    split = cells.get("split", "").lower()
    if split and split not in SPLITS:
        raise InputError(f"split {split!r} is neither 'train' nor 'validation'")
    form = cells.get("form") or None
    if form not in (None, "sform", "qform"):
        raise InputError(f"form {form!r} is neither 'sform' nor 'qform'")
    age = parse_age(cells.get("age"))
    notes = list(case.notes)
    if cells.get("age") and age is None:
        notes.append("its age cannot be read and was left out")
    return Case(
        case.name,
        case.files,
        cells.get("patient") or case.patient,
        cells.get("scan") or case.scan,
        SPLITS.get(split, ""),
        clean_text(row.cells["report"]),
        age or case.age,
        parse_sex(cells.get("sex")) or case.sex,
        parse_labels(cells),
        Reading(form=form, spacing_mm=_spacing(cells.get("spacing_mm", ""))),
        tuple(notes),
    )


def parse_labels(cells: dict[str, str]) -> tuple[int, ...] | None:
    """0, 1 or -1 for each of `LABELS`; None if the table has none of them.

    Raises:
      InputError: another value.
    """
    if not any(name in cells for name in LABELS):
        return None
    labels = []
    for name in LABELS:
        text = cells.get(name, "").strip()
        if text not in ("", "0", "1", "0.0", "1.0"):
            raise InputError(f"{name} = {text!r} is neither 0 nor 1")
        labels.append(int(float(text)) if text else -1)
    return tuple(labels)


def _spacing(text: str) -> tuple[float, float, float] | None:
    if not text:
        return None
    try:
        depth, height, width = (float(part) for part in text.lower().split("x"))
    except ValueError:
        raise InputError(f"spacing_mm {text!r} is not of the form 1.5x0.7x0.7") from None
    if not all(0 < value < 1000 for value in (depth, height, width)):
        raise InputError(f"spacing_mm {text!r} is not positive")
    return depth, height, width


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")

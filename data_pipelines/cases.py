"""The cases that a data set lists, before a voxel is read, and a source made of such a list."""

import dataclasses
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.patients import Age, prompt_line
from data_pipelines.source import HELD_OUT, TRAINING
from gct_jax.errors import ConfigError, InputError
from gct_jax.volumes.canonical import CTVolume
from gct_jax.volumes.ct import CT
from gct_jax.volumes.dicom import read_dicom
from gct_jax.volumes.grid import Grid, Spacing
from gct_jax.volumes.nifti import read_volume, stated_spacing
from gct_jax.volumes.placement import on_grid, place

SPACING_TOLERANCE = 0.02  # relative: what a rounded column differs by
# Options of the command line that a message may advise, and what a table has instead.
ADVICE = (
    (r"--spacing DEPTHxHEIGHTxWIDTH(, or accept it with --trust-spacing)?", "a column spacing_mm"),
    (r"--form (\w+)( or --form \w+)?", "a column form"),
    (r"--spacing", "a column spacing_mm"),
)


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a table says that a file does not; see `gct_jax.volumes.nifti.read_volume`.

    expected_mm: a spacing that counts where the file's own differs by more than 2 %.
    """

    form: str | None = None
    spacing_mm: Spacing | None = None
    expected_mm: Spacing | None = None
    rescale: tuple[float, float] | None = None
    default_axes: str = "LAS"


@dataclasses.dataclass(frozen=True)
class Case:
    """A CT and what is known of it.

    Attributes:
      name: where it lies below the root, a DICOM series with "#" and its number.
      files: one of NIfTI, or those of a DICOM series.
      patient: whose it is. scan: reconstructions of one scan share it.
      split: `TRAINING` or `HELD_OUT`.
      text: the report without age and sex, "" if there is none.
      labels: 0 or 1 for each of `data_pipelines.labels.LABELS`, -1 where not known; None: none
        is known.
      notes: sentences on what was mended.
    """

    name: str
    files: tuple[Path, ...]
    patient: str
    scan: str
    split: str
    text: str = ""
    age: Age | None = None
    sex: str = ""
    labels: tuple[int, ...] | None = None
    reading: Reading = Reading()
    notes: tuple[str, ...] = ()

    @property
    def report(self) -> str:
        """The line that networks read."""
        return prompt_line(self.age, self.sex, self.text)


class Rejected(NamedTuple):
    """A file or a row that is left out, and why."""

    name: str
    reason: str


class Listing(NamedTuple):
    """What a source found, and facts on how, as plain values."""

    cases: tuple[Case, ...]
    rejected: tuple[Rejected, ...]
    facts: Mapping[str, Any]


class ListedSource:
    """A source of files on disk; see `data_pipelines.source.Source`.

    Attributes:
      names_are_public: whether file names say nothing of a person.

    Raises:
      ConfigError: nothing is listed.
    """

    rendered = False
    names_are_public = False

    def __init__(self, listing: Listing, most: int = 0):
        self.listing = listing._replace(cases=listing.cases[: most or None])
        self.cases = len(self.listing.cases)
        if not self.cases:
            first = "; ".join(f"{name}: {reason}" for name, reason in listing.rejected[:1])
            raise ConfigError(f"there is no usable CT; {len(listing.rejected)} rejected. {first}")

    def case(self, case: int) -> Case:
        """What is known of a case."""
        return self.listing.cases[case]

    def read(self, case: int) -> CT:
        """The CT as it was stored.

        Raises:
          InputError: it cannot be used; the message begins with its name.
        """
        return read_case(self.case(case))

    def volume_hu(self, case: int, grid: Grid) -> np.ndarray:
        """int16 [depth, height, width], the field about the body."""
        ct = self.read(case)
        return on_grid(ct, place(ct, grid.shape, grid.spacing_mm, name=self.case(case).name).grid)

    def report(self, case: int, rng: np.random.Generator) -> str:
        """`65 years old female: TEXT`; there is one wording."""
        del rng
        return self.case(case).report

    def labels(self, case: int) -> np.ndarray | None:
        """int8 [18]; -1 where not known."""
        labels = self.case(case).labels
        return None if labels is None else np.array(labels, np.int8)

    def attributes(self, case: int, report: str) -> np.ndarray | None:
        """The labels, which a text encoder can learn to read."""
        del report
        labels = self.case(case).labels
        return None if labels is None else np.array(labels, np.int32)

    def patient(self, case: int) -> str:
        """As the data set names it."""
        return self.case(case).patient

    def split(self, case: int) -> str:
        """By patient."""
        return self.case(case).split

    def counterfactual(self) -> None:
        """Real patients have no other findings."""


def read_case(case: Case) -> CT:
    """A case's CT; `notes` says what was not read as it stands.

    Raises:
      InputError: it cannot be used; the message begins with the case's name.
    """
    try:
        read = _read(case)
    except InputError as error:
        raise InputError(_named(case, str(error))) from error
    except OSError as error:
        raise InputError(f"{case.name}: cannot be read ({error.strerror or error})") from error
    return CT(
        read.volume_hu,
        read.affine,
        notes=(*case.notes, *(_named(case, note) for note in read.notes)),
        stored_order=read.stored_order,
        form_code=read.form_code,
    )


def _read(case: Case) -> CTVolume:
    if "#" in case.name or len(case.files) > 1:
        return read_dicom(case.files, case.name)
    spacing_mm, expected = case.reading.spacing_mm, case.reading.expected_mm
    if expected is not None:
        own = stated_spacing(case.files[0], case.reading.form)
        if own is None or not np.allclose(own, expected, rtol=SPACING_TOLERANCE):
            spacing_mm = expected
    return read_volume(
        case.files[0],
        form=case.reading.form,
        spacing_mm=spacing_mm,
        rescale=case.reading.rescale,
        default_axes=case.reading.default_axes,
    )


def _named(case: Case, text: str) -> str:
    """A message that names the case, not where it lies on this machine."""
    for file in case.files:
        text = text.replace(str(file), case.name if len(case.files) == 1 else file.name)
    for option, column in ADVICE:
        text = re.sub(option, column, text)
    return text


def hold_out(cases: Sequence[Case], held_out: int) -> tuple[Case, ...]:
    """The cases with the patients whose hashes come first held out, as many as it takes for
    `held_out` cases, but never the last patient. A case that is added moves no other one's split.
    """
    patients = sorted({case.patient for case in cases}, key=pseudonym)
    chosen: set[str] = set()
    count = 0
    for patient in patients[:-1]:
        if count >= held_out:
            break
        chosen.add(patient)
        count += sum(case.patient == patient for case in cases)
    return tuple(
        dataclasses.replace(case, split=HELD_OUT if case.patient in chosen else TRAINING)
        for case in cases
    )


def pseudonym(name: str, key: bytes = b"") -> str:
    """16 hexadecimal digits that stand for a name. Without the key, who knows the names cannot tell
    which is whose."""
    content = name.encode("utf-8", "surrogateescape")
    return hmac.new(key, content, hashlib.sha256).hexdigest()[:16]

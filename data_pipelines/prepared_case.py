"""What one case becomes: its volume on a grid, packed, and what is known of it.

This is what the processes of a preparation do, so nothing here loads JAX or TensorFlow.
"""

import base64
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from data_pipelines.cases import ListedSource, Rejected, pseudonym
from data_pipelines.checks import checked_report, checked_volume
from data_pipelines.labels import LABELS
from data_pipelines.source import Source
from gct_jax.errors import ConfigError, InputError
from gct_jax.volumes.ct import CT
from gct_jax.volumes.grid import Grid
from gct_jax.volumes.intensity import WINDOWS_HU, window_to_uint8
from gct_jax.volumes.placement import Placement, on_grid, place

T = TypeVar("T")
ZSTD_LEVEL = 1
HISTOGRAM_HU = (-1000, 1000, 40)  # first, last, bins
THUMBNAIL = 96  # pixels


class Prepared(NamedTuple):
    """A case that will do.

    Attributes:
      packed: int16 HU, little-endian, [depth, height, width], by Zstandard.
      shape: (depth, height, width).
      record: texts and numbers that go beside the volume.
      facts: what the report counts, as plain values.
    """

    packed: bytes
    shape: tuple[int, int, int]
    record: dict[str, Any]
    facts: dict[str, Any]


def case_name(source: Source, case: int) -> str:
    """Its name as messages on the terminal have it."""
    return source.case(case).name if isinstance(source, ListedSource) else f"case {case}"


def case_key(source: Source, case: int, key: bytes) -> str:
    """Its name in records and reports: a pseudonym unless names are public.

    key: see `data_pipelines.preparation.listing_key`.
    """
    if not isinstance(source, ListedSource):
        return f"case-{case:06d}"
    name = source.case(case).name
    return name if source.names_are_public else pseudonym(name, key)


def prepare_case(
    source: Source,
    name: str,
    case: int,
    grid: Grid,
    depths: Sequence[int] = (),
    picture: bool = False,
    key: bytes = b"",
) -> Prepared | Rejected:
    """One case on a grid, or why it cannot be used.

    Args:
      name: of the source, for messages.
      grid: its shape and spacing count; the volume lies about the body, see `place`.
      depths: see `place`.
      picture: also make a thumbnail for the report.
      key: of pseudonyms.

    Raises:
      ConfigError: what every case needs is missing, such as a package.
    """
    try:
        volume, placement, notes = _volume(source, name, case, grid, depths)
        report = _report(source, name, case)
    except InputError as error:
        reason = str(error).removeprefix(f"{case_name(source, case)}: ")
        return Rejected(case_name(source, case), reason)
    except MemoryError:
        return Rejected(case_name(source, case), "more voxels than there is memory")
    content = volume_bytes(volume)
    depth, height, width = volume.shape
    labels = source.labels(case)
    age, sex, scan = _person(source, case)
    record = {
        "case": case_key(source, case, key),
        "patient": pseudonym(source.patient(case), key),
        "scan": pseudonym(scan, key),
        "report": report,
        "labels": np.full(len(LABELS), -1, np.int8)
        if labels is None
        else np.asarray(labels, np.int8),
        "age_years": np.float32(np.nan if age is None else age),
        "sex": sex,
        "spacing_mm": np.array(placement.grid.spacing_mm, np.float32),
        "placement": json.dumps(placement.to_json()),
    }
    return Prepared(pack(content), (depth, height, width), record, {
        "case": record["case"],
        "patient": record["patient"],
        "content": hashlib.sha256(content).hexdigest(),
        "source_shape": list(placement.source.shape),
        "source_spacing_mm": [round(x, 4) for x in placement.source.spacing_mm],
        "slices": depth,
        "age_years": age,
        "sex": sex,
        "words": len(report.split()),
        "labels": None if labels is None else [int(label) for label in labels],
        "hu": np.histogram(volume, HISTOGRAM_HU[2], HISTOGRAM_HU[:2])[0].tolist(),
        "thumbnail": thumbnail(volume) if picture else "",
        "notes": list(notes),
    })  # fmt: skip


def _volume(
    source: Source, name: str, case: int, grid: Grid, depths: Sequence[int]
) -> tuple[np.ndarray, Placement, tuple[str, ...]]:
    if not isinstance(source, ListedSource):
        volume = np.asarray(_of_case(checked_volume, source, name, case, grid))
        return volume, Placement(grid, grid), ()
    ct: CT = source.read(case)
    placement = place(ct, grid.shape, grid.spacing_mm, depths, case_name(source, case))
    return on_grid(ct, placement.grid), placement, (*ct.notes, *placement.notes)


def _report(source: Source, name: str, case: int) -> str:
    """ "" only from a list, whose cases need no report."""
    rng = np.random.default_rng(case)
    if isinstance(source, ListedSource):
        return source.report(case, rng)
    return _of_case(checked_report, source, name, case, rng)


def _of_case(check: Callable[..., T], *arguments: Any) -> T:
    """What is wrong with a case rejects it, and not the source."""
    try:
        return check(*arguments)
    except ConfigError as error:
        raise InputError(str(error)) from error


def _person(source: Source, case: int) -> tuple[float | None, str, str]:
    """Age in years, sex and scan, as far as they are known."""
    if not isinstance(source, ListedSource):
        return None, "", str(case)
    known = source.case(case)
    return (known.age.years if known.age else None), known.sex, known.scan


def volume_bytes(volume_hu: np.ndarray) -> bytes:
    """A volume as int16, little-endian."""
    return np.ascontiguousarray(volume_hu, "<i2").tobytes()


def pack(content: bytes) -> bytes:
    """By Zstandard.

    Raises:
      ConfigError: it is missing.
    """
    try:
        import zstandard
    except ModuleNotFoundError:
        raise ConfigError(
            "zstandard is missing, which packs volumes; pip install '.[data]'"
        ) from None
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(content)


def thumbnail(volume_hu: np.ndarray) -> str:
    """Base64 of a small PNG: the middle coronal slice in three windows, side by side."""
    middle = volume_hu[::-1, volume_hu.shape[1] // 2]  # head up
    tiles = []
    for window in WINDOWS_HU.values():
        image = Image.fromarray(window_to_uint8(middle, window))
        tiles.append(np.asarray(image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)))
    with io.BytesIO() as file:
        Image.fromarray(np.concatenate(tiles, 1)).save(file, "PNG", optimize=True)
        return base64.b64encode(file.getvalue()).decode()

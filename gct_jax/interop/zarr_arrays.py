"""Zarr (format 2) arrays in a folder, as T5X stores them: one file per chunk, gzip or none."""

import gzip
import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np

from gct_jax.errors import ModelFolderError

DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.decompress, "zlib": zlib.decompress}
LARGEST_CHUNK = 64 * 2**20  # bytes
GZIP_LEVEL = 1


def read_zarr(folder: Path) -> np.ndarray:
    """One array, assembled chunk by chunk, so that no more than one chunk is held beside it.

    Raises:
      ModelFolderError: a file is missing or damaged, or the array is stored in another way.
    """
    try:
        header = json.loads((folder / ".zarray").read_text())
        shape, chunks = tuple(header["shape"]), tuple(header["chunks"])
        name, order = header["dtype"], header["order"]
        dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
        compressor = (header["compressor"] or {"id": None})["id"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelFolderError(f"cannot read {folder / '.zarray'}: {error}") from None
    if compressor not in (None, *DECOMPRESS) or header.get("filters"):
        raise ModelFolderError(f"{folder} is compressed with {compressor!r}; expected gzip or none")
    value = np.empty(shape, dtype)
    counts = [-(-length // chunk) for length, chunk in zip(shape, chunks, strict=True)]
    for index in np.ndindex(*counts):
        path = folder / header.get("dimension_separator", ".").join(map(str, index or (0,)))
        try:
            content = path.read_bytes()
            if compressor:
                content = DECOMPRESS[compressor](content)
            part = np.frombuffer(content, dtype).reshape(chunks, order=order)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise ModelFolderError(f"cannot read the chunk {path}: {error}") from None
        # The last chunk along an axis is stored whole, even where it reaches over the edge.
        starts = [i * chunk for i, chunk in zip(index, chunks, strict=True)]
        ends = [start + chunk for start, chunk in zip(starts, chunks, strict=True)]
        region = value[tuple(slice(a, b) for a, b in zip(starts, ends, strict=True))]
        region[...] = part[tuple(slice(length) for length in region.shape)]
    return value


def write_zarr(folder: Path, value: np.ndarray, largest_chunk: int = LARGEST_CHUNK) -> dict:
    """Write an array of at least one axis, in equal chunks of whole rows of its first axis.

    Returns:
      shape, chunks and compressor, as an index of arrays repeats them.
    """
    rows = len(value)
    least = math.ceil(value.nbytes / largest_chunk)
    count = next(n for n in range(max(1, least), rows + 1) if rows % n == 0)
    chunks = [rows // count, *value.shape[1:]]
    metadata = {
        "shape": list(value.shape),
        "chunks": chunks,
        "compressor": {"id": "gzip", "level": GZIP_LEVEL},
    }
    header = {
        **metadata,
        "zarr_format": 2,
        "dtype": value.dtype.str,
        "order": "C",
        "fill_value": None,
        "filters": None,
        "dimension_separator": ".",
    }
    folder.mkdir(parents=True)
    (folder / ".zarray").write_text(json.dumps(header))
    for i, part in enumerate(np.split(value, count)):
        name = ".".join(map(str, (i, *[0] * (value.ndim - 1))))
        (folder / name).write_bytes(gzip.compress(part.tobytes(), GZIP_LEVEL, mtime=0))
    return metadata

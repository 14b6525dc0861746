"""CSV tables from anywhere: whatever is wrong with one row costs that row, not the table."""

import csv
import io
from pathlib import Path
from typing import NamedTuple

from gct_jax.errors import InputError

DELIMITERS = (",", ";", "\t")
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
LONGEST_CELL = 1 << 20


class Row(NamedTuple):
    """A row: its line in the file, its cells by column, and why it cannot be used, or None."""

    line: int
    cells: dict[str, str]
    reason: str | None


def read_table(
    path: str | Path, required: tuple[str, ...], known: tuple[str, ...] = ()
) -> list[Row]:
    """The rows of a CSV file in UTF-8 (or UTF-16 with its mark), separated by comma, semicolon or
    tab; a cell may hold line breaks. Case and blanks around a column's name do not matter.

    known: names of columns, as the rows shall have them; others keep their own.

    Raises:
      InputError: the file cannot be read, is no table, or lacks a required column.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    if content[:2] in UTF_16:
        text = content.decode("utf-16", "replace")
    else:
        text = content.decode("utf-8-sig", "surrogateescape")
    if "\0" in text:
        raise InputError(f"{path}: no CSV table, it holds zero bytes")
    first = text.split("\n", 1)[0]
    delimiter = max(DELIMITERS, key=first.count)
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[Row] = []
    try:
        spelled = {name.lower(): name for name in (*required, *known)}
        stripped = [name.strip() for name in next(reader, [])]
        header = [spelled.get(name.lower(), name) for name in stripped]
        missing = [name for name in required if name not in header]
        if missing:
            raise InputError(
                f"{path}: no column {', '.join(missing)} among {', '.join(header)[:200]!r}"
            )
        if len(set(header)) < len(header):
            raise InputError(f"{path}: a column name comes twice")
        for cells in reader:
            if cells:
                rows.append(_row(reader.line_num, header, cells))
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num} is no CSV ({error})") from None
    return rows


def _row(line: int, header: list[str], cells: list[str]) -> Row:
    reason = None
    if len(cells) != len(header):
        reason = f"line {line} has {len(cells)} cells, the header {len(header)}"
    elif any("\udc80" <= c <= "\udcff" for cell in cells for c in cell):
        reason = f"line {line} is not UTF-8"
    return Row(line, dict(zip(header, cells, strict=False)), reason)

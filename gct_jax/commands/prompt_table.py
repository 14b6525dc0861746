"""Tables of prompts for `generate --prompts`."""

import argparse
import csv
import unicodedata
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from gct_jax.commands.argument_types import seed_number
from gct_jax.errors import InputError
from gct_jax.notes import tell

COLUMNS = ("prompt", "name", "seed")


class Request(NamedTuple):
    """One volume to make: its prompt, random seed and output folder."""

    prompt: str
    seed: int
    folder: Path


def read_prompt_table(path: Path, first_seed: int, out: Path) -> list[Request]:
    """Requests of a CSV file with the column `prompt` and optional columns `name` and `seed`.

    Raises:
      InputError: the file cannot be read, has no prompts, or a row is not usable; names the line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            rows = [(reader.line_num, row) for row in reader]
            columns = list(reader.fieldnames or [])
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV file in UTF-8: {error}") from None
    if "prompt" not in columns:
        raise InputError(
            f"{path} has no column 'prompt'; its columns are {columns}. Separate columns by commas "
            "and write their names in lower case"
        )
    twice = [column for column, count in Counter(columns).items() if count > 1]
    if twice:
        raise InputError(
            f"{path} has {columns.count(twice[0])} columns named '{twice[0]}'; keep one"
        )
    if not rows:
        raise InputError(f"{path} holds no prompts")
    unused = [column for column in columns if column not in COLUMNS]
    if unused:
        tell(f"{path}: columns that are not used: {', '.join(unused)}")
    requests: dict[str, Request] = {}
    for index, (line, row) in enumerate(rows):
        where = f"{path} line {line}"
        if None in row:
            raise InputError(f"{where} has too many cells; put prompts with commas in quotes")
        prompt = (row["prompt"] or "").strip()
        if not prompt:
            raise InputError(f"{where}: the prompt is empty")
        name = (row.get("name") or "").strip() or f"{index + 1:04d}"
        # Where a disk takes no notice of case or of composition, "a" would overwrite "A".
        key = unicodedata.normalize("NFC", name).casefold()
        if Path(name).name != name or name == ".." or not name.isprintable():
            raise InputError(f"{where}: name {name!r} is no plain folder name")
        if key in requests:
            raise InputError(f"{where}: name '{name}' is used twice")
        try:
            seed = seed_number((row.get("seed") or "").strip() or str(first_seed + index))
        except argparse.ArgumentTypeError as error:
            raise InputError(f"{where}: seed {error}") from None
        requests[key] = Request(prompt, seed, out / name)
    return list(requests.values())

"""What was compiled so far, as JSON beside the page, so that a stopped plan can go on."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gct_jax.errors import ConfigError
from gct_jax.runtime.files import replace_when_done
from launch.plan.hlo import Instruction
from launch.plan.page import Row
from launch.plan.roofline import Facts, Refused, compile_program


class Results:
    """Compiles programs, keeps in a file what is found, and takes from there what it has."""

    def __init__(self, path: Path | None, asked: Mapping[str, Any], *, resume: bool) -> None:
        """
        Args:
          path: the file, or None to keep nothing.
          asked: the options that decide what is compiled.
          resume: begin with what the file has.

        Raises:
          ConfigError: there is no such file, it is not one of a plan, or is of other options.
        """
        if resume and path is None:
            raise ConfigError("--resume goes on with the file of --out; give that too")
        self._path, self._asked = path, asked
        self._rows = load(path, asked) if resume and path else {}

    def compiled(
        self, topology: str, name: str, mesh: Any, rows: int, lower: Callable[[], Any]
    ) -> tuple[Row, Sequence[Instruction]]:
        """The row of a program, and what it moves if it was compiled now."""
        shape = tuple(mesh.shape.values())
        known = self._rows.setdefault(topology, [])
        for row in known:
            if (row.program, row.mesh, row.rows) == (name, shape, rows):
                return row, ()
        print(f"compiling {name} on {'x'.join(map(str, shape))} ...", file=sys.stderr, flush=True)
        found = compile_program(lower)
        facts, moving = (found, []) if isinstance(found, Refused) else found
        known.append(Row(name, shape, rows, facts))
        if self._path:
            save(self._path, self._asked, self._rows)
        return known[-1], moving


def load(path: Path, asked: Mapping[str, Any]) -> dict[str, list[Row]]:
    """Rows by topology.

    Args:
      asked: the options that decide what is compiled.

    Raises:
      ConfigError: there is no such file, it is not one of a plan, or is of other options.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        other = [name for name in asked if content["asked"].get(name) != asked[name]]
        rows = {name: [_row(row) for row in rows] for name, rows in content["slices"].items()}
    except FileNotFoundError:
        raise ConfigError(f"--resume: there is no {path}; leave it out to start") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"--resume: {path} is not the file of a plan") from None
    if other:
        raise ConfigError(f"--resume: {path} was made with another {', '.join(other)}")
    return rows


def save(path: Path, asked: Mapping[str, Any], rows: Mapping[str, list[Row]]) -> None:
    """Write what `load` reads."""
    slices = {name: [_plain(row) for row in some] for name, some in rows.items()}
    with replace_when_done(path) as temporary:
        temporary.write_text(json.dumps({"asked": asked, "slices": slices}) + "\n", "utf-8")


def _plain(row: Row) -> dict[str, Any]:
    return {**row._asdict(), "found": row.found._asdict()}


def _row(plain: Mapping[str, Any]) -> Row:
    found = plain["found"]
    kind = Refused if "reason" in found else Facts
    return Row(**{**plain, "mesh": tuple(plain["mesh"]), "found": kind(**found)})

"""What values a field of a configuration may have, stated once, where the field is declared.

    steps: int = number(18, least=1, most=100_000)
    solver: str = choice("ancestral", ("ancestral", "dpm++"))

A class that inherits from `Checked` refuses other values whenever it is built, from Python, from a
file or from the command line.
"""

import dataclasses
import math
import types
import typing
from typing import Any

from gct_jax.errors import ConfigError

RANGE = "range"
NOT_A_MODULE_FIELD = {"module": False}


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of a number, or the choices of a text; of a tuple, of each entry.

    least, most: bounds that belong to the range. above, below: bounds that do not.
    special: a value that is allowed besides. length: of a tuple.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    special: float | None = None
    length: int | None = None

    def problem(self, value: Any) -> str | None:
        """What is wrong with one value, or None."""
        if self.choices:
            listed = ", ".join(map(repr, self.choices))
            return None if value in self.choices else f"is not one of {listed}"
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return f"must be a number {self}"
        if not math.isfinite(value):
            return "is not finite"
        if value == self.special:
            return None
        inside = (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )
        return None if inside else f"must be a number {self}"

    def __str__(self) -> str:
        words = (
            ("of at least", self.least),
            ("above", self.above),
            ("of at most", self.most),
            ("below", self.below),
        )
        text = " and ".join(f"{word} {bound:g}" for word, bound in words if bound is not None)
        return text + (f", or {self.special:g}" if self.special is not None else "")


def number(default: Any, *, module: bool = True, **bounds: Any) -> Any:
    """A dataclass field that holds a number, or a tuple of numbers, within `bounds` (see `Range`).

    module: whether the Flax module of the same name has this attribute.
    """
    return dataclasses.field(default=default, metadata={RANGE: Range(**bounds), "module": module})


def choice(default: Any, choices: tuple[str, ...], *, module: bool = True) -> Any:
    """A dataclass field that holds one of `choices`, or a tuple of them; `module`: see `number`."""
    metadata = {RANGE: Range(choices=choices), "module": module}
    return dataclasses.field(default=default, metadata=metadata)


class Checked:
    """A dataclass whose fields are checked against their types and ranges when it is built.

    Raises:
      ConfigError: "Class.field = value ..." for the first field outside its range.
    """

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            problem = _problem(hints[field.name], field.metadata.get(RANGE), self, field.name)
            if problem is not None:
                value = getattr(self, field.name)
                raise ConfigError(f"{type(self).__name__}.{field.name} = {value!r} {problem}")


def _problem(hint: Any, limits: Range | None, config: Any, name: str) -> str | None:
    value = getattr(config, name)
    if isinstance(hint, types.UnionType):
        if value is None and type(None) in typing.get_args(hint):
            return None
        members = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        several = [arg for arg in members if typing.get_origin(arg) is tuple]
        hint = several[0] if several and isinstance(value, tuple) else members[0]
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, tuple):
            return "must be a tuple"
        if limits is not None and limits.length not in (None, len(value)):
            return f"must have {limits.length} entries"
        item = typing.get_args(hint)[0]
        problems = ((entry, _entry_problem(item, limits, entry)) for entry in value)
        return next((f"holds {entry!r}, which {text}" for entry, text in problems if text), None)
    return _entry_problem(hint, limits, value)


def _entry_problem(hint: Any, limits: Range | None, value: Any) -> str | None:
    if hint is int and (not isinstance(value, int) or isinstance(value, bool)):
        return f"must be a whole number {limits or ''}".rstrip()
    if hint is bool and not isinstance(value, bool):
        return "must be True or False"
    if hint is str and not isinstance(value, str):
        return "must be a text"
    return limits.problem(value) if limits is not None else None

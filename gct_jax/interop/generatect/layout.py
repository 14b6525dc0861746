"""Two namings of the same numbers: the reference's state dict and our variables.

A network is described once, as a list of `Link`s. Each says which tensors of the reference hold the
numbers of which of our arrays, and how their axes are rearranged, in a notation that can be read in
both directions. Which links a network has is decided by our module itself: a link to an array that
the module does not make is left out.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import einops
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from gct_jax.errors import ModelFolderError
from gct_jax.interop.weight_files import as_float32

State = Mapping[str, np.ndarray]
Params = dict[str, Any]
AS_IT_IS = "... -> ..."


class Link(NamedTuple):
    """Tensors `theirs` hold the numbers of arrays `ours`; `pattern` leads from theirs to ours.

    Several of `theirs` are joined along their first axis, where they have the lengths `lengths`.
    Several of `ours` are stacked along a new first axis.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    pattern: str
    axes: Mapping[str, int]
    lengths: tuple[int, ...] = ()

    def to_ours(self, theirs: list[np.ndarray]) -> list[np.ndarray]:
        """The arrays named by `ours` from those named by `theirs`."""
        joined = theirs[0] if len(theirs) == 1 else np.concatenate(theirs)
        value = einops.rearrange(joined, self.pattern, **self.axes)
        return [value] if len(self.ours) == 1 else list(value)

    def to_theirs(self, ours: list[Any]) -> list[Any]:
        """The inverse of `to_ours`, for NumPy or JAX arrays."""
        left, right = self.pattern.split(" -> ")
        value = einops.rearrange(
            ours if len(ours) > 1 else ours[0], f"{right} -> {left}", **self.axes
        )
        if len(self.theirs) == 1:
            return [value]
        ends = [sum(self.lengths[: i + 1]) for i in range(len(self.lengths))]
        return [value[end - length : end] for end, length in zip(ends, self.lengths, strict=True)]


class Idle(NamedTuple):
    """A tensor that the reference has but never reads, and the value it has there at the start."""

    theirs: str
    default: np.ndarray


def link(
    ours: str | tuple[str, ...], theirs: str | tuple[str, ...], pattern: str = AS_IT_IS, **axes: int
) -> Link:
    """A `Link` between one or several names on each side."""
    ours = (ours,) if isinstance(ours, str) else ours
    theirs = (theirs,) if isinstance(theirs, str) else theirs
    return Link(ours, theirs, pattern, axes)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Everything the reference stores for one network.

    Attributes:
      links: the tensors that our variables are made of.
      idle: unread tensors by name, with the value to give them where none was kept.
      foreign: prefixes of tensors that belong to other networks saved alongside.
      shapes: shape of each of our arrays, by its path joined with dots.
    """

    links: tuple[Link, ...]
    idle: dict[str, np.ndarray]
    foreign: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]

    @classmethod
    def of(
        cls, variables: Params, entries: Iterable[Link | Idle], foreign: tuple[str, ...] = ()
    ) -> "Layout":
        """Layout of a module whose variables have the (abstract) tree `variables`."""
        shapes = {name: x.shape for name, x in flatten_dict(variables, sep=".").items()}
        entries = list(entries)
        links = tuple(e for e in entries if isinstance(e, Link) and e.ours[0] in shapes)
        unlinked = set(shapes) - {name for link in links for name in link.ours}
        assert not unlinked, f"no link for {sorted(unlinked)}"
        idle = {e.theirs: e.default for e in entries if isinstance(e, Idle)}
        return cls(links, idle, foreign, shapes)

    def names(self) -> set[str]:
        """The reference's names of the tensors that `from_reference` reads."""
        return {name for link in self.links for name in link.theirs}

    def from_reference(self, state: State) -> Params:
        """Our variables, float32.

        Raises:
          ModelFolderError: a tensor is missing, unknown, of another shape or type than the rest of
            the weights implies, or not finite.
        """
        expected = self._their_shapes()
        self._require_names(state, expected)
        _require_shapes(state, expected)
        flat: dict[str, np.ndarray] = {}
        for entry in self.links:
            theirs = [as_float32(name, state[name]) for name in entry.theirs]
            flat |= dict(zip(entry.ours, entry.to_ours(theirs), strict=True))
        return unflatten_dict(flat, sep=".")

    def to_reference(self, variables: Params, kept: State | None = None) -> dict[str, np.ndarray]:
        """The reference's state dict: our numbers, and what else it needs from `kept`.

        Args:
          variables: float32 variables of the module.
          kept: tensors set aside at import. Idle ones that are not among them get their default;
            others, such as those of a network saved alongside, are passed on.
        """
        flat = flatten_dict(jax.device_get(variables), sep=".")
        state = self.idle | dict(kept or {})
        for entry in self.links:
            theirs = entry.to_theirs([np.asarray(flat[name], np.float32) for name in entry.ours])
            state |= dict(zip(entry.theirs, theirs, strict=True))
        return state

    def _their_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for entry in self.links:
            ours = [jax.ShapeDtypeStruct(self.shapes[name], np.float32) for name in entry.ours]
            theirs = jax.eval_shape(entry.to_theirs, ours)
            shapes |= {name: x.shape for name, x in zip(entry.theirs, theirs, strict=True)}
        return shapes

    def _require_names(self, state: State, expected: Mapping[str, tuple[int, ...]]) -> None:
        missing = sorted(set(expected) - set(state))
        unknown = sorted(
            name
            for name in set(state) - set(expected) - set(self.idle)
            if not name.startswith(self.foreign)
        )
        surplus = f"{len(unknown)} unexpected tensor(s), first {unknown[0]!r}" if unknown else ""
        if missing:
            raise ModelFolderError(
                f"the weights lack {len(missing)} tensor(s), first {missing[0]!r} of shape "
                f"{expected[missing[0]]}" + (f"; they hold {surplus}" if surplus else "")
            )
        if unknown:
            raise ModelFolderError(
                f"the weights hold {surplus}; the other tensors describe a network without it"
            )


def _require_shapes(state: State, expected: Mapping[str, tuple[int, ...]]) -> None:
    wrong = [name for name, shape in expected.items() if state[name].shape != shape]
    if not wrong:
        return
    others = (
        f"; {len(wrong) - 1} more do not fit either, so perhaps a tensor that sizes are read from "
        "is the wrong one"
    )
    raise ModelFolderError(
        f"tensor {wrong[0]!r} has shape {state[wrong[0]].shape}; the sizes found in the other "
        f"tensors ask for {expected[wrong[0]]}" + (others if len(wrong) > 1 else "")
    )


def sizes(state: State, name: str, axes: int) -> tuple[int, ...]:
    """Shape of one tensor that must be there with `axes` axes.

    Raises:
      ModelFolderError: the tensor is missing or has another number of axes.
    """
    if name not in state:
        raise ModelFolderError(f"the weights lack the tensor {name!r}")
    shape = state[name].shape
    if len(shape) != axes:
        raise ModelFolderError(f"tensor {name!r} has shape {shape}; expected {axes} axes")
    return shape


def count_indices(state: State, prefix: str) -> int:
    """How many different integers follow `prefix` in the keys: the depth of a stack."""
    return len({key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)})


def without_prefix(state: State, prefix: str) -> dict[str, np.ndarray]:
    """The tensors under `prefix`, named without it."""
    return {name[len(prefix) :]: x for name, x in state.items() if name.startswith(prefix)}


def with_their_prefix(entries: Iterable[Link | Idle], prefix: str) -> Iterator[Link | Idle]:
    """The same entries for a network that the reference stores as part of another."""
    for entry in entries:
        if isinstance(entry, Idle):
            yield entry._replace(theirs=prefix + entry.theirs)
        else:
            yield entry._replace(theirs=tuple(prefix + name for name in entry.theirs))

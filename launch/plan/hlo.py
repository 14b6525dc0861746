"""What a compiled program moves, read from the compiler's text.

Of every instruction outside of fused computations: the bytes of those of its operands and results
that lie in the chip's large memory. On a TPU many stay in the memory on the chip ("S(1)" in their
layout); what is fetched there ahead of its use, or brought back, counts once. The compiler's own
count, `cost_analysis`, makes no such difference and counts the whole of an array for each part that
is fetched of it. A loop whose number of turns the compiler knows counts that often.

Of a collective over groups of n chips, with R the bytes of its result on a chip, each chip receives

    all-gather, all-to-all   R (n - 1) / n            collective-permute   R                     (1)
    all-reduce               2 R (n - 1) / n          reduce-scatter       R (n - 1)             (2)

A TPU hides a collective behind a chain of fusions: each of them names it, and hands its buffers on.
It runs once, and is counted once; so is what the fusions themselves move.
"""

import collections
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

ITEM_BYTES = {
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2"), 1),
    **dict.fromkeys(("bf16", "f16", "s16", "u16"), 2),
    **dict.fromkeys(("f32", "s32", "u32"), 4),
    **dict.fromkeys(("f64", "s64", "u64"), 8),
}
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
# They move nothing, or what they move is counted elsewhere.
FREE = {
    *("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "conditional"),
    *("call", "copy-start", "slice-start", "async-start", "async-update"),
    *("partition-id", "replica-id", "after-all"),
}

FETCHED = ("copy-done", "slice-done")  # between the memories, while something else is computed

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{\n", re.M)
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(?[^=]*?\)?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b(" + "|".join(ITEM_BYTES) + r")\[([\d,]*)\]")
_PLACED = re.compile(_ARRAY.pattern + r"(\{[^}]*\})?")
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]+)\}|\[(\d+),(\d+)\])")
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_CALLS = re.compile(r"calls=%?([\w.\-]+)")
_HANDED_ON = re.compile(r"output_to_operand_aliasing=\{(.*?\))\}")
_COMMENT = re.compile(r"/\*.*?\*/")
_MESH_AXIS = re.compile(r"'([^']+)'(?::\(\d+\)(\d+))?")


class Instruction(NamedTuple):
    """One that moves something.

    bytes_moved: in the chip's large memory, each time; 0 of a collective within a fusion, which has
    them. times: how often it runs. result: its type.
    source: the operation of the program that it comes from.
    """

    name: str
    operation: str
    result: str
    bytes_moved: float
    times: int
    group: int
    source: str


def instructions(text: str) -> list[Instruction]:
    """All of a program that move something, from `compiled.as_text()`."""
    found: list[Instruction] = []
    bodies = _bodies(_COMMENT.sub("", text))
    hidden: set[str] = set()
    for name, times in _turns(bodies).items():
        found.extend(_read(bodies[name], times, bodies, hidden))
    return found


def received_bytes(instruction: Instruction) -> float:
    """Equations (1) and (2): what each chip receives in a collective, all times together."""
    size, n = array_bytes(_last(instruction)), instruction.group
    kind = collective(instruction.operation)
    factor = {
        "all-gather": (n - 1) / n,
        "all-to-all": (n - 1) / n,
        "all-reduce": 2 * (n - 1) / n,
        "reduce-scatter": n - 1,
        "collective-permute": 1,
    }[kind]
    return size * factor * instruction.times


def collective(operation: str) -> str:
    """The kind of a collective instruction; "" for others, and for the end of one that waits."""
    kind = operation.removesuffix("-start")
    return kind if kind in COLLECTIVES else ""


def array_bytes(text: str) -> int:
    """Bytes of all arrays that a type names."""
    return sum(
        ITEM_BYTES[kind] * math.prod(int(size) for size in sizes.split(",") if size)
        for kind, sizes in _ARRAY.findall(text)
    )


def memory_bytes(text: str) -> int:
    """As `array_bytes`, of those arrays that lie in the chip's large memory."""
    return sum(
        array_bytes(match[0]) for match in _PLACED.finditer(text) if "S(" not in (match[3] or "")
    )


def _last(instruction: Instruction) -> str:
    """Of an asynchronous collective's type (operand, result), the result."""
    if not instruction.operation.endswith("-start"):
        return instruction.result
    arrays = [match[0] for match in re.finditer(_ARRAY, instruction.result)]
    return arrays[-1] if len(arrays) == 2 else ", ".join(arrays[len(arrays) // 2 :])


def _bodies(text: str) -> dict[str, list[str]]:
    """Lines of each computation by its name; the entry is called "ENTRY"."""
    marks = list(_COMPUTATION.finditer(text))
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    return {
        "ENTRY" if mark[1] else mark[2]: text[mark.end() : end].split("\n")
        for mark, end in zip(marks, ends, strict=True)
    }


def _turns(bodies: dict[str, list[str]]) -> dict[str, int]:
    """How often each computation that is not fused runs."""
    times: dict[str, int] = collections.defaultdict(int)

    def visit(name: str, count: int) -> None:
        times[name] += count
        for line in bodies[name]:
            loop = re.search(r" while\(.*body=%?([\w.\-]+)", line)
            if loop:
                turns = _TURNS.search(line)
                visit(loop[1], count * (int(turns[1]) if turns else 1))
            for called in _called(line):
                if called in bodies:
                    visit(called, count)

    visit("ENTRY", 1)
    return dict(times)


def _called(line: str) -> Iterator[str]:
    """Computations that an instruction runs once: branches and calls."""
    if re.search(r" conditional\(", line):
        branches = re.search(r"branch_computations=\{([^}]*)\}", line)
        names = (
            branches[1]
            if branches
            else " ".join(re.findall(r"(?:true|false)_computation=(%?[\w.\-]+)", line))
        )
        yield from re.findall(r"%?([\w.\-]+)", names)
    call = re.search(r" call\(.*to_apply=%?([\w.\-]+)", line)
    if call:
        yield call[1]


def _read(
    lines: list[str], times: int, bodies: dict[str, list[str]], hidden: set[str]
) -> Iterator[Instruction]:
    """Instructions of a computation; `hidden` are channels of collectives that were read."""
    types: dict[str, str] = {}
    for line in lines:
        match = _INSTRUCTION.match(line)
        if not match:
            continue
        name, result, operation, rest = match.groups()
        types[name] = result
        operands = re.findall(r"%([\w.\-]+)", rest.split("metadata")[0].split("calls=")[0])
        if operation in FETCHED:
            started = types.get(operands[0], "")
            sides = 1 if "S(1)" in result + started else 2
            moved = sides * array_bytes(result)
            yield Instruction(name, operation, result, moved, times, 1, "")
        if operation in FREE or operation.endswith("-done"):
            continue
        moved = memory_bytes(result) + sum(memory_bytes(types.get(name, "")) for name in operands)
        calls = _CALLS.search(line) if operation == "fusion" else None
        inside = _hidden(calls[1], bodies, times) if calls else []
        for channel, one in inside:
            if channel not in hidden:
                yield one
            hidden.add(channel)
        if inside:
            moved -= _handed_on(line, result, operands, types)
        yield Instruction(name, operation, result, moved, times, _group(line), _source(line))


def _hidden(
    computation: str, bodies: dict[str, list[str]], times: int
) -> list[tuple[str, Instruction]]:
    """Collectives within a fused computation, with the channel that tells which are the same."""
    found = []
    lines = bodies.get(computation, [])
    for line in lines:
        match = _INSTRUCTION.match(line)
        if not match or not collective(match[3]):
            continue
        result, kind = match[2], match[3]
        if computation.startswith("all-reduce-scatter"):  # a sum, of which each chip keeps a part
            root = next(filter(None, map(_INSTRUCTION.match, lines[::-1])))
            result, kind = root[2], "reduce-scatter"
        channel = _CHANNEL.search(line)
        one = Instruction(match[1], kind, result, 0.0, times, _group(line), _source(line))
        found.append((channel[1] if channel else match[1], one))
    return found


def _handed_on(line: str, result: str, operands: list[str], types: dict[str, str]) -> int:
    """Bytes of a fusion's operands and results that are the same buffers, handed on untouched."""
    aliases = _HANDED_ON.search(line)
    if not aliases:
        return 0
    results = [match[0] for match in _PLACED.finditer(result)]
    pairs = [(int(i), int(j)) for i, j in re.findall(r"\{(\d+)\}: \((\d+),", aliases[1])]
    total = sum(memory_bytes(results[output]) for output, _ in pairs)
    return total + sum(memory_bytes(types.get(operands[j], "")) for j in {j for _, j in pairs})


def _source(line: str) -> str:
    """The operation of the program that an instruction comes from, "" if it does not say."""
    found = re.search(r'op_name="([^"]*)"', line)
    return found[1] if found else ""


def _group(line: str) -> int:
    """Chips of a collective's group, 1 for others."""
    of_mesh = _MESH_GROUPS.search(line)
    if of_mesh:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", of_mesh[1]))
        axes = _MESH_AXIS.findall(of_mesh[2])
        return math.prod(int(part or sizes[name]) for name, part in axes)
    groups = _GROUPS.search(line)
    if not groups:
        return 1
    return len(groups[1].split(",")) if groups[1] else int(groups[3])

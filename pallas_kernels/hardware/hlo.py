"""Reads from a compiled program's text how often each of its instructions runs."""

import re
from collections import Counter

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
_INSTRUCTION = re.compile(r"^  (?:ROOT )?%?([\w.-]+) = (.*)$")
_OPCODE = re.compile(r"[\])}] ([\w-]+)\((?:%?([\w.-]+)\))?")
_CALLED = re.compile(r"\b(?:to_apply|calls|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
WHILE = re.compile(r" while\(%?([\w.-]+)\), condition=%?([\w.-]+), body=%?([\w.-]+)")
_COMPARE = re.compile(r" compare\(%?([\w.-]+)(?:#(\d+))?, %?([\w.-]+)\), direction=(\w+)")
_CONSTANT = re.compile(r" constant\((-?\d+)\)")
_ELEMENT = re.compile(r" get-tuple-element\(.*\), index=(\d+)")
_VMEM = re.compile(
    r'"used_scoped_memory_configs":\[\{"memory_space":"1","offset":"0","size":"(\d+)"'
)

Computations = dict[str, dict[str, str]]


def executions(text: str, trips: int | float | None = None) -> Counter[str]:
    """Returns how often each instruction outside fusions runs, by name.

    Every branch of a conditional counts as run.

    Args:
      trips: average trips of loops that do not count up to a constant.

    Raises:
      ValueError: there is such a loop, and `trips` is None.
    """
    computations, entry = parse(text)
    counts: Counter[str] = Counter()
    _count(computations, entry, 1, counts, trips)
    return Counter({name: round(times) for name, times in counts.items()})


def vmem_bytes(text: str) -> dict[str, int]:
    """Returns the on-chip memory of each TPU kernel that uses any, by instruction."""
    lines = filter(None, map(_INSTRUCTION.match, text.splitlines()))
    return {line[1]: int(found[1]) for line in lines if (found := _VMEM.search(line[2]))}


def parse(text: str) -> tuple[Computations, str]:
    """Returns the instructions of each computation, and the name of the entry.

    The instructions are {computation: {instruction: what stands right of "="}}.
    """
    computations: Computations = {}
    entry, current = "", {}
    for line in text.splitlines():
        if instruction := _INSTRUCTION.match(line):
            current[instruction[1]] = instruction[2]
        elif header := _COMPUTATION.match(line):
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
    return computations, entry


def _count(computations: Computations, name: str, times: int | float, counts, trips) -> None:
    for instruction, right in computations[name].items():
        counts[instruction] += times
        if loop := WHILE.search(right):
            counted = loop_trips(computations, name, *loop.groups())
            if counted is None and trips is None:
                raise ValueError(f"cannot count the trips of the loop with condition {loop[2]}")
            each = times * (trips if counted is None else counted)
            _count(computations, loop[3], each, counts, trips)
            continue
        if _OPCODE.search(right)[1] in ("call", "conditional", "async-start"):
            called = _CALLED.findall(right)
            for branches in _BRANCHES.findall(right):
                called += [branch.strip().lstrip("%") for branch in branches.split(",")]
            for computation in called:
                _count(computations, computation, times, counts, trips)


def loop_trips(
    computations: Computations, name: str, state: str, condition: str, body: str
) -> int | None:
    """Returns the trips of a while loop that counts up by one to a constant; None of any other.

    An element of a tuple is an instruction of its own, or written as %tuple#0.
    """
    tests = list(filter(None, map(_COMPARE.search, computations[condition].values())))
    if len(tests) != 1 or tests[0][4] != "LT":
        return None
    left, index, right, _ = tests[0].groups()
    limit = _CONSTANT.search(computations[condition][right])
    if index is None and (element := _ELEMENT.search(computations[condition][left])):
        index = element[1]
    if not limit or index is None:
        return None
    start = _element(computations[name], state, int(index))
    return int(limit[1]) - _constant(computations[name], start)


def _element(instructions: dict[str, str], name: str, index: int) -> str:
    """Returns the instruction of element `index` of a tuple; "" if the tuple is made elsewhere."""
    _, is_tuple, operands = instructions[name].partition(" tuple(")
    return re.findall(r"%([\w.-]+)", operands)[index] if is_tuple else ""


def _constant(instructions: dict[str, str], name: str) -> int:
    """Returns the value of an instruction that copies a constant; 0 if it does not."""
    while name in instructions:
        if found := _CONSTANT.search(instructions[name]):
            return int(found[1])
        opcode, operand = _OPCODE.search(instructions[name]).groups()
        if opcode not in ("copy", "bitcast", "copy-start", "copy-done"):
            break
        name = operand
    return 0

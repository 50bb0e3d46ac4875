"""Finds the loops and the skipped regions of a kernel, from the text of its bundles."""

import dataclasses
import re

_DELAY_SLOTS = 4  # bundles after a branch that still run
_BRANCH = re.compile(r"sbr\.rel(?: \((!?)(%p\w+)\))? target bundleno = (\d+)")
_BOTH = re.compile(r"pnand (%p\w+), (%p\w+)")
_NOT_FIRST = re.compile(r"scmp\.ge\.s32\.totalorder (%\w+), 1\b")
_NOT_LAST = re.compile(r"scmp\.lt\.s32\.totalorder (%\w+), (\d+)\b")
_COMPARISON = re.compile(r"scmp\.(\w+)\.[su]32(?:\.totalorder)? (%\w+), (-?\d+)\b")
_SKIPS_UNLESS = {"": {"ne": "==", "eq": "!=", "le": ">", "ge": "<", "lt": ">=", "gt": "<="}}
_SKIPS_UNLESS["!"] = {"eq": "==", "ne": "!=", "gt": ">", "lt": "<", "ge": ">=", "le": "<="}
_MASKED = re.compile(r"sand\.u32 (?:(\d+), %\w+|%\w+, (\d+))")
_LOAD = re.compile(r"sld \[smem:\[(#allocation\d+_spill)\]\]")
_AS_NUMBER = re.compile(r"scalar_select /\*predicate=\*/(%p\w+), /\*on_true=\*/1, /\*on_false=\*/0")
_EXIT_TESTS = {
    "": re.compile(r"scmp\.(?:lt|ne)\.[su]32\.totalorder %\w+, (\d+)\b"),
    "!": re.compile(r"scmp\.(?:ge|eq)\.[su]32\.totalorder %\w+, (\d+)\b"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loop:
    """Spans bundles `first` to `last`; `trips` is None where the exit test has no constant."""

    first: int
    last: int
    trips: int | float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Region:
    """Spans bundles `first` to `last`, skipped when the branch at bundle `branch` is taken.

    Attributes:
      runs_if: the comparison of a scalar with a constant under which it is not skipped, such as
        "== 3", "& 8 != 0" for one bit, or "< 3 and >= 1" for both; "" where the branch depends on
        anything else.
      body_of: the number of trips of the Pallas grid loop whose body this is; 0 for other regions.
    """

    first: int
    last: int
    branch: int
    runs_if: str
    body_of: int = 0


def control_flow(bundles: list[str]) -> tuple[tuple[Loop, ...], tuple[Region, ...]]:
    """Returns the loops and the regions that may be skipped, from a kernel's bundles."""
    loops, regions = [], []
    for branch, text in enumerate(bundles):
        for negated, predicate, target in _BRANCH.findall(text):
            end = min(branch + _DELAY_SLOTS, len(bundles) - 1)
            test = _condition(bundles, predicate, end) if predicate else ""
            if int(target) <= branch:
                loops.append(Loop(first=int(target), last=end, trips=_trips(negated, test)))
            elif end < int(target) - 1:
                regions.append(
                    Region(
                        first=end + 1,
                        last=int(target) - 1,
                        branch=branch,
                        runs_if=_runs_if(bundles, negated, test, end),
                        body_of=_grid_trips(bundles, test, end),
                    )
                )
    return tuple(loops), tuple(regions)


def _grid_trips(bundles: list[str], test: str, before: int) -> int:
    """Returns n + 2 if `test` skips unless 1 <= i < n + 1, else 0."""
    both = _BOTH.match(test)
    tests = [definition(bundles, register, before) for register in both.groups()] if both else []
    first, last = (list(filter(None, map(x.match, tests))) for x in (_NOT_FIRST, _NOT_LAST))
    same = first and last and first[0][1] == last[0][1]
    return int(last[0][2]) + 1 if same else 0


def _runs_if(bundles: list[str], negated: str, test: str, before: int) -> str:
    """Returns `Region.runs_if` of the region that `test` skips."""
    if (both := _BOTH.match(test)) and not negated:
        tests = [_condition(bundles, register, before) for register in both.groups()]
        parts = {_runs_if(bundles, "!", part, before) for part in tests}
        return "" if "" in parts else " and ".join(sorted(parts))
    found = _COMPARISON.match(test)
    if not found or found[1] not in _SKIPS_UNLESS[negated]:
        return ""
    bits = _MASKED.match(definition(bundles, found[2], before)) if found[3] == "0" else None
    masked = f"& {bits[1] or bits[2]} " if bits else ""
    return f"{masked}{_SKIPS_UNLESS[negated][found[1]]} {found[3]}"


def _condition(bundles: list[str], predicate: str, before: int) -> str:
    """Returns the instruction that made a predicate, also if it was a number meanwhile."""
    test = definition(bundles, predicate, before)
    found = _COMPARISON.match(test)
    if found and found[1] == "ne" and found[3] == "0":
        kept = _AS_NUMBER.match(definition(bundles, found[2], before))
        return definition(bundles, kept[1], before) if kept else test
    return test


def definition(bundles: list[str], register: str, before: int) -> str:
    """Returns the instruction that last wrote `register` up to a bundle, also through a spill."""
    written = _last(bundles, re.escape(register) + r" = ([^;}]*)", before)
    if load := _LOAD.match(written):
        store = rf"sst \[smem:\[{re.escape(load[1])}\]\] (%\w+)"
        if stored := _last(bundles, store, before):
            return _last(bundles, re.escape(stored) + r" = ([^;}]*)", before)
    return written


def _last(bundles: list[str], pattern: str, before: int) -> str:
    """Returns the first group of the last match of `pattern` up to bundle `before`.

    Returns "" where there is no match.
    """
    compiled = re.compile(pattern)
    for text in reversed(bundles[: before + 1]):
        if found := compiled.search(text):
            return found[1].strip()
    return ""


def _trips(negated: str, test: str) -> int | None:
    if negated and test.startswith("pmov 1 "):
        return 1
    found = _EXIT_TESTS[negated].match(test)
    return int(found[1]) if found else None

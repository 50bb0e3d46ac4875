"""Reads the final schedule that the TPU compiler writes of a kernel.

A TPU core is a VLIW machine: one bundle of instructions a cycle. Two dumps of the compiler have one
line a bundle: `packed-bundles-post-ra`, the instructions, and `pre-delay_hlo-static-per-bundle-
utilization`, the slots of each unit that they hold. Cycles are bundles times how often they run;
waits for copies between memories are not among them.

A loop is a backward branch, and its trip count the constant that its exit test compares with. A
forward branch makes a region that may be skipped; it is counted as always run unless a weight is
given. A Pallas grid of n steps makes n + 2 trips, because copies run ahead of and behind the body;
the branch that skips the body in the first and the last is recognised by its two comparisons.
"""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

_DELAY_SLOTS = 4  # bundles after a branch that still run
_BUNDLE = re.compile(r"^ *(0x[0-9a-f]+|0) [^\n{]*\{(.*)$", re.MULTILINE)
_BRANCH = re.compile(r"sbr\.rel(?: \((!?)(%p\w+)\))? target bundleno = (\d+)")
_CALL = re.compile(r"inlined_call [^/]*/\* %([^ ]+) = ")
_BOTH = re.compile(r"pnand (%p\w+), (%p\w+)")
_NOT_FIRST = re.compile(r"scmp\.ge\.s32\.totalorder (%\w+), 1\b")
_NOT_LAST = re.compile(r"scmp\.lt\.s32\.totalorder (%\w+), (\d+)\b")
_EXIT_TESTS = {
    "": re.compile(r"scmp\.(?:lt|ne)\.[su]32\.totalorder %\w+, (\d+)\b"),
    "!": re.compile(r"scmp\.(?:ge|eq)\.[su]32\.totalorder %\w+, (\d+)\b"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loop:
    """Bundles `first` to `last`; `trips` is None where the exit test compares with no constant."""

    first: int
    last: int
    trips: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Region:
    """Bundles `first` to `last`, skipped when the branch at bundle `branch` is taken.

    Attributes:
      body_of: trips of the loop of a Pallas grid whose body this is, else 0.
    """

    first: int
    last: int
    branch: int
    condition: str
    body_of: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
    """One kernel.

    Attributes:
      slots: per unit, the slots held in each bundle.
      capacity: per unit, the slots of a cycle.
      calls: of the top-level program, the kernel that each of some bundles calls.
    """

    name: str
    slots: Mapping[str, np.ndarray]
    capacity: Mapping[str, int]
    loops: tuple[Loop, ...]
    regions: tuple[Region, ...]
    calls: Mapping[int, str]

    @property
    def bundles(self) -> int:
        return len(next(iter(self.slots.values())))


def read_listing(name: str, instructions: str, utilization: str) -> Listing:
    """A kernel from the texts of its two dumps."""
    bundles = [found[2] for found in _BUNDLE.finditer(instructions)]
    capacity, slots = _read_slots(utilization)
    for unit, column in slots.items():
        if len(column) != len(bundles):
            raise ValueError(f"{name}: {len(bundles)} bundles but {len(column)} rows of {unit}")
    loops, regions = _control_flow(bundles)
    calls = {i: call[1] for i, text in enumerate(bundles) if (call := _CALL.search(text))}
    return Listing(
        name=name, slots=slots, capacity=capacity, loops=loops, regions=regions, calls=calls
    )


def frequencies(listing: Listing, weights: Mapping[int, float] | None = None) -> np.ndarray:
    """How often each bundle runs in one execution of a kernel.

    Args:
      weights: by the bundle of a region's branch, the share of passes that do not skip it.
    """
    often = np.ones(listing.bundles)
    for loop in listing.loops:
        often[loop.first : loop.last + 1] *= loop.trips or 1
    for region in listing.regions:
        runs = 1 - 2 / region.body_of if region.body_of else 1.0
        often[region.first : region.last + 1] *= (weights or {}).get(region.branch, runs)
    return often


def top_level_frequencies(listing: Listing, executions: Mapping[str, int]) -> np.ndarray:
    """The same for the program that calls the kernels; a loop runs as often as what it calls."""
    often = np.ones(listing.bundles)
    for loop in sorted(listing.loops, key=lambda loop: loop.first - loop.last):
        called = [executions[n] for i, n in listing.calls.items() if loop.first <= i <= loop.last]
        if called:
            often[loop.first : loop.last + 1] = min(called)
    return often


def _read_slots(utilization: str) -> tuple[dict[str, int], dict[str, np.ndarray]]:
    header, _, table = utilization.partition("== UTILIZATION:")
    names, capacity = header.strip().splitlines()[-2:]
    units = [unit.strip() for unit in names.split(",")]
    columns = np.array(table.split(), int).reshape(-1, len(units)).T
    return dict(zip(units, map(int, capacity.split()), strict=True)), dict(
        zip(units, columns, strict=True)
    )


def _control_flow(bundles: list[str]) -> tuple[tuple[Loop, ...], tuple[Region, ...]]:
    loops, regions = [], []
    for branch, text in enumerate(bundles):
        for negated, predicate, target in _BRANCH.findall(text):
            end = min(branch + _DELAY_SLOTS, len(bundles) - 1)
            test = _definition(bundles, predicate, end) if predicate else ""
            if int(target) <= branch:
                loops.append(Loop(first=int(target), last=end, trips=_trips(negated, test)))
            elif end < int(target) - 1:
                first, last = end + 1, int(target) - 1
                trips = _grid_trips(bundles, test, end)
                regions.append(
                    Region(first=first, last=last, branch=branch, condition=test, body_of=trips)
                )
    return tuple(loops), tuple(regions)


def _grid_trips(bundles: list[str], test: str, before: int) -> int:
    """n + 2 if `test` skips unless 1 <= i < n + 1, else 0."""
    both = _BOTH.match(test)
    tests = [_definition(bundles, register, before) for register in both.groups()] if both else []
    first, last = (list(filter(None, map(x.match, tests))) for x in (_NOT_FIRST, _NOT_LAST))
    same = first and last and first[0][1] == last[0][1]
    return int(last[0][2]) + 1 if same else 0


def _definition(bundles: list[str], register: str, before: int) -> str:
    """The instruction that last wrote `register`."""
    pattern = re.compile(re.escape(register) + r" = ([^;}]*)")
    for text in reversed(bundles[: before + 1]):
        if found := pattern.search(text):
            return found[1].strip()
    return ""


def _trips(negated: str, test: str) -> int | None:
    if negated and test.startswith("pmov 1 "):
        return 1
    found = _EXIT_TESTS[negated].match(test)
    return int(found[1]) if found else None

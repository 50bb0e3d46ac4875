"""Reads the final schedule that the TPU compiler writes of a kernel.

A TPU core is a VLIW machine: one bundle of instructions a cycle. Two dumps of the compiler have one
line a bundle: `packed-bundles-post-ra`, the instructions, and `pre-delay_hlo-static-per-bundle-
utilization`, the slots of each unit that they hold. Cycles are bundles times how often they run;
waits for copies between memories are not among them.

A loop is a backward branch, and its trip count the constant that its exit test compares with. A
forward branch makes a region that may be skipped; it is counted as always run unless its share is
given, by the comparison with a constant under which it runs. A Pallas grid of n steps makes n + 2
trips, because copies run ahead of and behind the body; the branch that skips the body in the first
and the last is recognised by its two comparisons.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping

import numpy as np

from pallas_kernels.hardware.branches import Loop, Region, control_flow, definition

_BUNDLE = re.compile(r"^ *(0x[0-9a-f]+|0) [^\n{]*\{(.*)$", re.MULTILINE)
_COPY = re.compile(r"dma\.(?:hbm_to|\w+_to_hbm|general)\w* [^{;]*?/\*size_in_granules=\*/(%?\w+)")
_GRANULE = 32  # bytes
_SIZE = re.compile(r"(?:smov\.u32 (\d+)|scalar_select .*/(\d+), /\*on_false=\*/(\d+))$")
_SHIFTED = re.compile(r"sshll\.u32 (%\w+), (\d+)$")
_CALL = re.compile(r"inlined_call [^/]*/\* %([^ ]+) = ")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
    """Shows one kernel's schedule.

    Attributes:
      slots: for each unit, the slots held in each bundle.
      capacity: for each unit, the slots of a cycle.
      copies: bytes that some bundles begin to copy from or to HBM, at most; None if unknown.
      calls: in the top-level program, the kernel that each of some bundles calls.
    """

    name: str
    slots: Mapping[str, np.ndarray]
    capacity: Mapping[str, int]
    loops: tuple[Loop, ...]
    regions: tuple[Region, ...]
    copies: tuple[tuple[int, int | None], ...]
    calls: Mapping[int, str]

    @property
    def bundles(self) -> int:
        return len(next(iter(self.slots.values())))

    def with_trips(self, trips: int | float | None) -> "Listing":
        """Returns a copy with those trips for loops that do not end at a constant."""
        loops = (dataclasses.replace(x, trips=x.trips or trips) for x in self.loops)
        return dataclasses.replace(self, loops=tuple(loops))


def read_listing(name: str, instructions: str, utilization: str) -> Listing:
    """Reads a kernel from the texts of its two dumps."""
    bundles = [found[2] for found in _BUNDLE.finditer(instructions)]
    capacity, slots = _read_slots(utilization)
    for unit, column in slots.items():
        if len(column) != len(bundles):
            raise ValueError(f"{name}: {len(bundles)} bundles but {len(column)} rows of {unit}")
    loops, regions = control_flow(bundles)
    calls = {i: call[1] for i, text in enumerate(bundles) if (call := _CALL.search(text))}
    return Listing(
        name=name,
        slots=slots,
        capacity=capacity,
        loops=loops,
        regions=regions,
        copies=tuple(_copies(bundles)),
        calls=calls,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Known:
    """Says what is known of a kernel beyond its listing.

    Attributes:
      shares: by `Region.runs_if`, the share of a loop's passes that do not skip such regions in it.
      trips: average trips of loops that do not end at a constant.
    """

    shares: Mapping[str, float] = dataclasses.field(default_factory=dict)
    trips: int | float | None = None


def frequencies(listing: Listing, shares: Mapping[str, float] | None = None) -> np.ndarray:
    """Returns how often each bundle runs in one execution of a kernel.

    Args:
      shares: see `Known`.

    Raises:
      ValueError: no region runs under a comparison whose share is given.
    """
    shares = shares or {}
    often = np.ones(listing.bundles)
    for loop in listing.loops:
        often[loop.first : loop.last + 1] *= loop.trips or 1
    missing = set(shares)
    for region in listing.regions:
        runs = 1 - 2 / region.body_of if region.body_of else 1.0
        if any(x.first <= region.first and region.last <= x.last for x in listing.loops):
            runs = shares.get(region.runs_if, runs)
            missing.discard(region.runs_if)
        often[region.first : region.last + 1] *= runs
    if missing:
        raise ValueError(f"{listing.name}: no region runs if {' or '.join(sorted(missing))}")
    return often


def copied_bytes(listing: Listing, often: np.ndarray) -> float:
    """Returns the bytes of all copies of known size if each is made whenever its bundle runs.

    A grid of n steps makes n copies of a block in its n + 2 trips, or fewer, where blocks stay.

    Args:
      often: the result of `frequencies`.
    """
    copying = often.copy()
    for body in filter(lambda region: region.body_of, listing.regions):
        loops = [x for x in listing.loops if x.first <= body.first and body.last <= x.last]
        loop = max(loops, key=lambda x: x.first)
        share = 1 - 2 / body.body_of
        copying[loop.first : body.first] *= share
        copying[body.last + 1 : loop.last + 1] *= share
    return float(sum(copying[bundle] * size for bundle, size in listing.copies if size))


def top_level_frequencies(listing: Listing, executions: Mapping[str, int]) -> np.ndarray:
    """Returns how often each bundle of the program that calls the kernels runs.

    A loop runs as often as what it calls.
    """
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


def _copies(bundles: list[str]) -> Iterator[tuple[int, int | None]]:
    for bundle, text in enumerate(bundles):
        for size in _COPY.findall(text):
            most = _most(bundles, size, bundle)
            yield bundle, None if most is None else most * _GRANULE


def _most(bundles: list[str], size: str, before: int) -> int | None:
    """Returns the most that a number or register can be.

    Returns None unless only constants go into it.
    """
    if size.isdigit():
        return int(size)
    made = definition(bundles, size, before)
    if found := _SIZE.match(made):
        return max(int(x) for x in found.groups() if x)
    shifted = _SHIFTED.match(made)
    inner = _most(bundles, shifted[1], before) if shifted else None
    return None if inner is None else inner << int(shifted[2])

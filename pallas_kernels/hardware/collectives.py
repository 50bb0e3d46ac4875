"""Reads from a compiled program's text what its devices send to one another.

A collective is an instruction of its own, a pair of `-start` and `-done`, or one inside a called
computation. The TPU compiler fuses an all-reduce with the slice that makes it a reduce-scatter, and
spreads a gather over several fusions between which other work runs; those share a channel.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from pallas_kernels.hardware import hlo

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
_COLLECTIVE = re.compile(rf"[\])}}] ({'|'.join(KINDS)})(?:-start)?\(([^)]*)\)")
_SHAPE = re.compile(r"\b(pred|[a-z]{1,2}(\d+)\w*)\[([\d,]*)\]")
_SHAPES = re.compile(r"\((?:[^()]|\([^()]*\))*\)|[^ ]*")  # a tuple's, with tiles in brackets
_OPERAND = re.compile(r"%([\w.-]+)(?:#(\d+))?")
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_IOTA = re.compile(r"replica_groups=\[\d+,(\d+)\]<=")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")
_MESH_AXIS = re.compile(r"('[^']+')(?:=(\d+)|:\(\d+\)(\d+))?")
_DEVICES = re.compile(r"\bnum_partitions=(\d+)|\breplica_count=(\d+)")
_CALLED = re.compile(r"\b(?:to_apply|calls|\w+_computations?|async_\w+)=(?:\{([^}]*)\}|%([\w.-]+))")
_FINISHES = re.compile(r"[\])}] [\w-]+-(?:done|update)\(")
_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Collective(NamedTuple):
    """Says what one collective sends, in all its executions in a run of the program.

    Attributes:
      kind: one of KINDS.
      devices: number of devices that exchange with one another; 2 of a permutation.
      executions: how often it runs in one run of the program.
      sent: bytes that a device sends in all of them, by the algorithm that sends least.
    """

    kind: str
    devices: int
    executions: int
    sent: float


class Traffic(NamedTuple):
    """Lists all collectives of a program.

    Attributes:
      uncounted_loops: loops without a constant trip count, taken as running once.
    """

    collectives: tuple[Collective, ...]
    uncounted_loops: int

    def sent(self) -> dict[str, float]:
        """Returns the bytes that a device sends, by kind; kinds that send nothing are left out."""
        by_kind: Counter[str] = Counter()
        for found in self.collectives:
            by_kind[found.kind] += found.sent
        return {kind: by_kind[kind] for kind in KINDS if by_kind[kind]}


def traffic(text: str) -> Traffic:
    """Finds every collective of a compiled program.

    Args:
      text: `compiled.as_text()`.
    """
    computations, entry = hlo.parse(text)
    runs, uncounted = _runs(computations, entry)
    everyone = math.prod(int(a or b) for a, b in _DEVICES.findall(text.partition("\n")[0]))
    fused = {
        name
        for body in computations.values()
        for right in body.values()
        if " fusion(" in right
        for name in _called(right)
    }
    found: dict[tuple, Collective] = {}
    for name, body in computations.items():
        for instruction, right in body.items():
            collective = _COLLECTIVE.search(_brief(right)) if runs[name] else None
            if not collective:
                continue
            one = _read(collective, right, body, runs[name], everyone, "reduce-scatter" in name)
            channel = _CHANNEL.search(right)
            shared = name in fused and channel is not None
            key = (one.kind, channel[1]) if shared else (name, instruction)
            found[key] = max(one, found.get(key, one), key=lambda x: x.executions)
    return Traffic(tuple(found.values()), uncounted)


def _runs(computations: hlo.Computations, entry: str) -> tuple[Counter[str], int]:
    """Returns how often each computation runs, and how many loops' trips are not known."""
    runs: Counter[str] = Counter()
    calls = {name: list(_calls(computations, name)) for name in computations}

    def visit(name: str, times: int) -> None:
        runs[name] += times
        for called, trips in calls[name]:
            visit(called, times * (1 if trips is None else trips))

    visit(entry, 1)
    uncounted = [trips for name in calls if runs[name] for _, trips in calls[name]].count(None)
    return runs, uncounted


def _calls(computations: hlo.Computations, name: str) -> Iterator[tuple[str, int | None]]:
    """Returns the (computation, how often) pairs that run; None is a loop of unknown length."""
    for right in computations[name].values():
        if loop := hlo.WHILE.search(right):
            known = _KNOWN_TRIPS.search(right)
            trips = int(known[1]) if known else None
            yield loop[3], trips or hlo.loop_trips(computations, name, *loop.groups())
        elif not _FINISHES.search(_brief(right)):
            for called in filter(computations.__contains__, _called(right)):
                yield called, 1


def _brief(right: str) -> str:
    """Removes the compiler's notes, which are long, from an instruction."""
    return right.partition(", backend_config=")[0].partition(", metadata=")[0]


def _called(right: str) -> list[str]:
    """Returns the computations that an instruction names."""
    names = [many or one for many, one in _CALLED.findall(_brief(right))]
    return [name.strip().lstrip("%") for part in names for name in part.split(",")]


def _read(collective, right: str, body: dict, runs: int, everyone: int, sliced: bool):
    """Reads one collective; `sliced` says that a device keeps only its share of an all-reduce."""
    kind, operands = collective.groups()
    size = sum(_operand_bytes(body, *operand) for operand in _OPERAND.findall(operands))
    devices = 2 if kind == "collective-permute" else _group(right, everyone)
    if kind == "all-reduce" and sliced:
        kind = "reduce-scatter"
    share = (devices - 1) / devices
    factor = {"all-gather": devices - 1, "all-reduce": 2 * share, "collective-permute": 1}
    return Collective(kind, devices, runs, runs * size * factor.get(kind, share))


def _operand_bytes(body: dict[str, str], name: str, index: str) -> float:
    """Returns the bytes of %name, or of one element of a tuple, %name#index."""
    shapes = [found[0] for found in _SHAPE.finditer(_SHAPES.match(body.get(name, ""))[0])]
    return _bytes(shapes[int(index)] if index else " ".join(shapes))


def _bytes(shape: str) -> float:
    """Returns the bytes of an array, or of the arrays of a tuple, as "bf16[8,128]{1,0}"."""
    return sum(
        int(bits or 8) / 8 * math.prod(int(n) for n in dims.split(",") if n)
        for _, bits, dims in _SHAPE.findall(shape)
    )


def _group(right: str, everyone: int) -> int:
    """Returns the devices of a replica group, in any of the ways it is written."""
    if listed := _LISTED.search(right):
        return listed[1].count(",") + 1
    if iota := _IOTA.search(right):
        return int(iota[1])
    if mesh := _MESH.search(right):
        sizes = {name: int(size) for name, size, _ in _MESH_AXIS.findall(mesh[1]) if size}
        axes = _MESH_AXIS.findall(mesh[2])
        return math.prod(int(part) if part else sizes[name] for name, _, part in axes)
    return everyone

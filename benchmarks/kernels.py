"""Times an op's implementations, side by side: `python -m benchmarks.kernels`.

An implementation is timed only after its results on hostile inputs were found right.
"""

import argparse
import dataclasses
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs some of the GPU

import jax

from benchmarks import attention, attention_decode, gated_delta, slot_attention
from benchmarks.contestant import Contestant
from hydrahead_jax.json_file import dumps
from pallas_kernels.hardware.chips import CHIPS, chip_of
from pallas_kernels.report import tables
from pallas_kernels.report.provenance import provenance
from pallas_kernels.report.rows import median_seconds

OPS = {
    "gated_delta": gated_delta,
    "attention": attention,
    "attention_decode": attention_decode,
    "slot_attention": slot_attention,
}
RESULTS = Path(__file__).parent / "results"
TOKENS = tuple(2**n for n in range(11, 18))  # 2K to 128K
CPU_TOKENS = (256, 512)
COLUMNS = (
    "implementation",
    "shape",
    "forward ms",
    "x floor",
    "bandwidth",
    "backward ms",
    "x floor",
)
PROPORTIONAL = 0.10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """Holds median seconds of one implementation at one shape; floors are None on unknown chips.

    Attributes:
      backward_s: None where there is no backward pass.
      bandwidth: share of the device memory's bandwidth that the forward pass's least traffic takes.
      peer: whether it is another project's.
      failures: what its check found, where it was timed nevertheless.
    """

    implementation: str
    shape: str
    tokens: int
    forward_s: float
    backward_s: float | None
    forward_floor_s: float | None
    backward_floor_s: float | None
    bandwidth: float | None = None
    peer: bool = False
    failures: tuple[str, ...] = ()


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    op = OPS[options.op]
    sizes = dict(heads=options.heads, groups=options.group, head_size=options.head_size)
    shapes = op.shapes(tokens=sorted(options.tokens), **sizes)
    timings, refused = [], {}
    for contestant in op.contestants(options.implementation):
        failures = check(op, contestant, head_size=options.head_size)
        if failures and not options.time_failing:
            refused[contestant.name] = failures
            continue
        for shape in shapes:
            timings += time_one(op, contestant, shape, failures, refused)
    print(f"\n{jax.devices()[0].device_kind}, {provenance()}\n\n{report(timings)}")
    for name, failures in refused.items():
        print(f"\nnot reported: {name}: {'; '.join(failures)}")
    for line in [*against_peers(timings), *(proportionality(timings) if op.LINEAR else [])]:
        print(line)
    if options.out or jax.default_backend() != "cpu":
        write(options.out or default_path(options.op), timings, refused)


def parser() -> argparse.ArgumentParser:
    cpu = jax.default_backend() == "cpu"
    found = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    found.add_argument("--op", choices=OPS, default="gated_delta")
    found.add_argument("--implementation", nargs="+", help="also others' by their names")
    found.add_argument("--tokens", nargs="+", type=int, default=CPU_TOKENS if cpu else TOKENS)
    found.add_argument("--heads", nargs="+", type=int, default=[2] if cpu else [16, 32])
    found.add_argument("--group", nargs="+", type=int, default=[1, 2], help="heads a key head")
    found.add_argument("--head-size", type=int, default=16 if cpu else 128)
    found.add_argument("--time-failing", action="store_true", help="time what fails, and say so")
    found.add_argument("--out", type=Path, help="JSON file; default: in benchmarks/results")
    return found


def check(op, contestant: Contestant, *, head_size: int) -> list[str]:
    """Returns one sentence for each hostile case whose results miss the tests' bounds."""
    failures, checked, last = [], 0, ""
    for case in filter(contestant.takes, op.hostile_cases(head_size)):
        _progress(f"{contestant.name}: {case.name}")
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            exact = contestant.exact(case)
        try:
            found = op.too_far(contestant.results(case), exact)
        except NotImplementedError as refusal:
            if contestant.may_refuse:
                last = str(refusal)
                continue
            return [str(refusal)]
        checked += 1
        failures += [f"{case.name}: {', '.join(found)}"] if found else []
    return failures if checked else [f"it takes none of the checks; the last: {last}"]


def time_one(op, contestant: Contestant, shape, failures, refused) -> list[Timing]:
    """Returns the timing of a shape, or none where the implementation refuses it."""
    _progress(f"{contestant.name}: {shape}")
    try:
        forward, backward = contestant.calls(shape)
    except NotImplementedError as refusal:
        refused[f"{contestant.name} {shape}"] = [str(refusal)]
        return []
    forward_floor, backward_floor = floors(op, shape)
    forward_s = median_seconds(forward, wait=contestant.wait)
    backward_s = backward and median_seconds(backward, wait=contestant.wait)
    name = chip_of(jax.devices()[0].device_kind)
    memory_s = CHIPS[name].memory_s(op.least_bytes(shape, "forward")) if name else None
    timing = Timing(
        implementation=contestant.name,
        shape=str(shape),
        tokens=shape.tokens,
        forward_s=forward_s,
        backward_s=backward_s,
        forward_floor_s=forward_floor,
        backward_floor_s=backward_floor,
        bandwidth=memory_s and memory_s / forward_s,
        peer=contestant.peer,
        failures=tuple(failures),
    )
    return [timing]


def floors(op, shape) -> tuple[float | None, float | None]:
    """Returns the least seconds of the forward pass, and of the backward pass alone."""
    name = chip_of(jax.devices()[0].device_kind)
    if name is None:
        return None, None
    chip, passes = CHIPS[name], ("forward", "forward+backward")
    work = [(op.flops(shape, x), op.least_bytes(shape, x)) for x in passes]
    (forward_flops, forward_bytes), (both_flops, both_bytes) = work
    backward = chip.floor_s(both_flops - forward_flops, both_bytes - forward_bytes)
    return chip.floor_s(forward_flops, forward_bytes), backward


def report(timings: Sequence[Timing]) -> str:
    over = lambda seconds, floor: f"{seconds / floor:.1f}" if seconds and floor else "-"
    ms = lambda seconds: "-" if seconds is None else f"{seconds * 1e3:.3f}"
    lines = [
        [
            timing.implementation + (" (fails its check)" if timing.failures else ""),
            timing.shape,
            ms(timing.forward_s),
            over(timing.forward_s, timing.forward_floor_s),
            f"{timing.bandwidth:.0%}" if timing.bandwidth else "-",
            ms(timing.backward_s),
            over(timing.backward_s, timing.backward_floor_s),
        ]
        for timing in sorted(timings, key=lambda x: (x.shape.split()[1:], x.tokens))
    ]
    return tables.plain(COLUMNS, lines)


def against_peers(timings: Sequence[Timing]) -> list[str]:
    """Compares each of ours with the fastest of the others, by shape."""
    lines = []
    for timing in timings:
        rivals = [x for x in timings if x.peer and x.shape == timing.shape]
        if timing.peer or not rivals:
            continue
        parts = []
        for passes in ("forward", "backward"):
            seconds = lambda x, passes=passes: getattr(x, f"{passes}_s")
            timed = [x for x in rivals if seconds(x) is not None]
            if timed and seconds(timing) is not None:
                best = min(timed, key=seconds)
                ratio = seconds(best) / seconds(timing)
                parts.append(f"{passes} {ratio:.2f}x the speed of {best.implementation}")
        lines.append(f"{timing.implementation} {timing.shape}: {', '.join(parts)}")
    return lines


def proportionality(timings: Sequence[Timing]) -> list[str]:
    """Says whether the time of a token is the same at every length, by series of shapes."""
    series: dict[tuple[str, str], list[Timing]] = {}
    for timing in timings:
        heads = timing.shape.partition(" ")[2]
        series.setdefault((timing.implementation, heads), []).append(timing)
    lines = []
    for (name, heads), found in series.items():
        longest = max(found, key=lambda x: x.tokens)
        timed = [x for x in ("forward_s", "backward_s") if getattr(longest, x) is not None]
        for passes in timed:
            a_token = lambda x, passes=passes: getattr(x, passes) / x.tokens
            off = max(abs(a_token(x) / a_token(longest) - 1) for x in found)
            verdict = "proportional" if off <= PROPORTIONAL else "NOT proportional"
            span = f"T{min(x.tokens for x in found)} to T{longest.tokens}"
            lines.append(f"{name} {heads} {passes[:-2]}: {verdict}, {span} within {off:.0%}")
    return lines


def default_path(op: str) -> Path:
    kind = re.sub(r"\W+", "_", jax.devices()[0].device_kind.lower())
    return RESULTS / f"{'kernels' if op == 'gated_delta' else op}_{kind}.json"


def write(path: Path, timings: Sequence[Timing], refused: dict[str, list[str]]) -> None:
    record = {
        "device": jax.devices()[0].device_kind,
        "made": provenance(),
        "not_reported": refused,
        "timings": [dataclasses.asdict(timing) for timing in timings],
    }
    path.write_text(dumps(record, indent=1) + "\n")
    print(f"\n{path}")


def _progress(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

"""`python -m benchmarks.kernels`: times of the gated delta rule's implementations, side by side.

An implementation is timed only after its results on hostile inputs were found right.
"""

import argparse
import dataclasses
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs some of the GPU

import jax

from benchmarks.contestants import Contestant, contestants
from pallas_kernels.report import tables
from pallas_kernels.report.chips import CHIPS, chip_of
from pallas_kernels.report.gated_delta import Shape, flops, least_bytes
from pallas_kernels.report.provenance import provenance
from pallas_kernels.report.rows import median_seconds
from tests.kernels.cases import HOSTILE, LENGTHS, Case, make_inputs
from tests.kernels.oracle import Results, float64_results
from tests.tolerances import KERNEL, cosine, error_ratio

RESULTS = Path(__file__).parent / "results"
TOKENS = tuple(2**n for n in range(11, 18))  # 2K to 128K
CPU_TOKENS = (256, 512)
COLUMNS = ("implementation", "shape", "forward ms", "x floor", "backward ms", "x floor")
PROPORTIONAL = 0.10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """Median seconds of one implementation at one shape; the floors are None on unknown chips.

    Attributes:
      failures: what its check found, where it was timed nevertheless.
    """

    implementation: str
    shape: str
    tokens: int
    forward_s: float
    backward_s: float
    forward_floor_s: float | None
    backward_floor_s: float | None
    failures: tuple[str, ...] = ()


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    timings, refused = [], {}
    for contestant in contestants(options.implementation):
        failures = check(contestant, head_size=options.head_size)
        if failures and not options.time_failing:
            refused[contestant.name] = failures
            continue
        for shape in shapes(options):
            timings += time_one(contestant, shape, failures, refused)
    print(f"\n{jax.devices()[0].device_kind}, {provenance()}\n\n{report(timings)}")
    for name, failures in refused.items():
        print(f"\nnot reported: {name}: {'; '.join(failures)}")
    for line in proportionality(timings):
        print(line)
    if options.out or jax.default_backend() != "cpu":
        write(options.out or default_path(), timings, refused)


def parser() -> argparse.ArgumentParser:
    cpu = jax.default_backend() == "cpu"
    found = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    found.add_argument("--implementation", nargs="+", help="also fla and 'tokamax KDA'")
    found.add_argument("--tokens", nargs="+", type=int, default=CPU_TOKENS if cpu else TOKENS)
    found.add_argument("--heads", nargs="+", type=int, default=[2] if cpu else [16, 32])
    found.add_argument(
        "--group", nargs="+", type=int, default=[1, 2], help="value heads a key head"
    )
    found.add_argument("--head-size", type=int, default=16 if cpu else 128)
    found.add_argument("--time-failing", action="store_true", help="time what fails, and say so")
    found.add_argument("--out", type=Path, help="JSON file; default: in benchmarks/results")
    return found


def shapes(options) -> list[Shape]:
    return [
        Shape(tokens=tokens, heads=heads, key_heads=heads // group, head_size=options.head_size)
        for group in options.group
        for heads in options.heads
        for tokens in sorted(options.tokens)
    ]


def check(contestant: Contestant, *, head_size: int) -> list[str]:
    """One sentence for each hostile case whose results are not within the tests' bounds."""
    failures = []
    for case in hostile_cases(head_size):
        if contestant.takes(case):
            _progress(f"{contestant.name}: {case.name}")
            inputs = make_inputs(case)
            with jax.default_device(jax.local_devices(backend="cpu")[0]):
                exact = float64_results(inputs)
            try:
                found = too_far(contestant.results(inputs), exact)
            except NotImplementedError as refusal:
                return [str(refusal)]
            failures += [f"{case.name}: {', '.join(found)}"] if found else []
    return failures


def hostile_cases(head_size: int) -> list[Case]:
    """In bf16, at the head size that is timed, with and without grouped value heads."""
    base = [LENGTHS[-1], *(case for case in HOSTILE if case.segments == "one")]
    sizes = {"length": 192, "batch": 1, "key_dim": head_size, "value_dim": head_size}
    return [
        dataclasses.replace(case, **sizes, key_heads=keys, value_heads=2, dtype="bfloat16")
        for keys in (1, 2)
        for case in base
    ]


def too_far(actual: Results, exact: Results) -> list[str]:
    """Which results miss the bounds of tests/tolerances.py, and by how much."""
    limits = KERNEL["bfloat16"]
    bounds = dict.fromkeys(Results._fields, limits.gradient)
    bounds |= {"out": limits.forward, "state": limits.forward}
    bounds |= {"dlog_decay": limits.gate_gradient, "dbeta": limits.gate_gradient}
    found = []
    for name, bound in bounds.items():
        ratio = error_ratio(getattr(actual, name), getattr(exact, name))
        if not ratio <= bound:
            found.append(f"{name} {ratio:.1e} > {bound}")
    for name in ("dlog_decay", "dbeta"):
        alike = cosine(getattr(actual, name), getattr(exact, name))
        if not alike >= limits.gate_cosine:
            found.append(f"cosine of {name} {alike:.4f} < {limits.gate_cosine}")
    return found


def time_one(contestant: Contestant, shape: Shape, failures, refused) -> list[Timing]:
    """The timing of a shape, or none where the implementation refuses it."""
    _progress(f"{contestant.name}: {shape}")
    try:
        forward, backward = contestant.calls(shape)
    except NotImplementedError as refusal:
        refused[f"{contestant.name} {shape}"] = [str(refusal)]
        return []
    forward_floor, backward_floor = floors(shape)
    timing = Timing(
        implementation=contestant.name,
        shape=str(shape),
        tokens=shape.tokens,
        forward_s=median_seconds(forward, wait=contestant.wait),
        backward_s=median_seconds(backward, wait=contestant.wait),
        forward_floor_s=forward_floor,
        backward_floor_s=backward_floor,
        failures=tuple(failures),
    )
    return [timing]


def floors(shape: Shape) -> tuple[float | None, float | None]:
    """Of the forward and of the backward alone."""
    name = chip_of(jax.devices()[0].device_kind)
    if name is None:
        return None, None
    work = [(flops(shape, x), least_bytes(shape, x)) for x in ("forward", "forward+backward")]
    (forward_flops, forward_bytes), (both_flops, both_bytes) = work
    chip = CHIPS[name]
    backward = chip.floor_s(both_flops - forward_flops, both_bytes - forward_bytes)
    return chip.floor_s(forward_flops, forward_bytes), backward


def report(timings: Sequence[Timing]) -> str:
    over = lambda seconds, floor: f"{seconds / floor:.1f}" if floor else "-"
    lines = [
        [
            timing.implementation + (" (fails its check)" if timing.failures else ""),
            timing.shape,
            f"{timing.forward_s * 1e3:.3f}",
            over(timing.forward_s, timing.forward_floor_s),
            f"{timing.backward_s * 1e3:.3f}",
            over(timing.backward_s, timing.backward_floor_s),
        ]
        for timing in sorted(timings, key=lambda x: (x.shape.split()[1:], x.tokens))
    ]
    return tables.plain(COLUMNS, lines)


def proportionality(timings: Sequence[Timing]) -> list[str]:
    """Whether the time of a token is the same at every length, by series of shapes."""
    series: dict[tuple[str, str], list[Timing]] = {}
    for timing in timings:
        heads = timing.shape.partition(" ")[2]
        series.setdefault((timing.implementation, heads), []).append(timing)
    lines = []
    for (name, heads), found in series.items():
        longest = max(found, key=lambda x: x.tokens)
        for passes in ("forward_s", "backward_s"):
            a_token = lambda x, passes=passes: getattr(x, passes) / x.tokens
            off = max(abs(a_token(x) / a_token(longest) - 1) for x in found)
            verdict = "proportional" if off <= PROPORTIONAL else "NOT proportional"
            span = f"T{min(x.tokens for x in found)} to T{longest.tokens}"
            lines.append(f"{name} {heads} {passes[:-2]}: {verdict}, {span} within {off:.0%}")
    return lines


def default_path() -> Path:
    kind = re.sub(r"\W+", "_", jax.devices()[0].device_kind.lower())
    return RESULTS / f"kernels_{kind}.json"


def write(path: Path, timings: Sequence[Timing], refused: dict[str, list[str]]) -> None:
    record = {
        "device": jax.devices()[0].device_kind,
        "made": provenance(),
        "not_reported": refused,
        "timings": [dataclasses.asdict(timing) for timing in timings],
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"\n{path}")


def _progress(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

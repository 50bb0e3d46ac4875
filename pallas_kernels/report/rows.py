"""Makes one row of the report: an implementation at one shape on one target."""

import dataclasses
import statistics
import time
from typing import Any

import jax

from pallas_kernels.hardware.chips import CHIPS, chip_of
from pallas_kernels.hardware.gpu import GpuProgram, compile_for_h200
from pallas_kernels.hardware.isolated import IsolatedError
from pallas_kernels.hardware.memory import Memory
from pallas_kernels.hardware.tpu import TOPOLOGIES, TpuProgram, compile_for_tpu, fold_small
from pallas_kernels.report.ops import OPS
from pallas_kernels.report.programs import program
from pallas_kernels.report.provenance import provenance

TARGETS = (*TOPOLOGIES, "h200")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """Says what to compile or time: `chip` is one of TARGETS, or "local" for the device at hand."""

    op: str
    chip: str
    implementation: str
    shape: Any
    passes: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """Says what one implementation costs at one shape on one target.

    Attributes:
      flops: matrix FLOP of the algorithm, whatever the implementation does.
      least_bytes: device memory traffic that cannot be avoided.
      compute_floor_s: time of `flops` at the peak of the cores that the program is for.
      memory_floor_s: time of `least_bytes`; both None on an unknown device.
      seconds: measured median on a device; on a TPU that is not at hand the schedule's cycles, or
        the memory floor where that is longer, so a lower bound; None on a GPU not at hand.
      useful: share of the matrix units' peak that `flops` make up in those seconds.
      program: what the compiler says; None on a device at hand.
      refusal: why there is no figure.
      made: versions and commit.
    """

    op: str
    chip: str
    implementation: str
    shape: str
    units: int
    passes: str
    flops: float
    least_bytes: float
    compute_floor_s: float | None = None
    memory_floor_s: float | None = None
    seconds: float | None = None
    useful: float | None = None
    program: TpuProgram | GpuProgram | None = None
    refusal: str | None = None
    made: str = ""

    @property
    def floor_s(self) -> float | None:
        floors = (self.compute_floor_s, self.memory_floor_s)
        return None if None in floors else max(floors)

    @property
    def over_floor(self) -> float | None:
        known = self.seconds is not None and self.floor_s is not None
        return self.seconds / self.floor_s if known else None

    @property
    def memory(self) -> Memory | None:
        return self.program and self.program.memory


def make_row(task: Task) -> Row:
    """Compiles the task, or measures it on a device at hand.

    If the implementation refuses the arguments, the row says so.
    """
    row = _floors(task)
    try:
        if task.chip == "local":
            return _with_seconds(row, measure(task))
        op, what = OPS[task.op], (task.shape, task.implementation, task.passes)
        fn, shapes = program(op, *what)
        if task.chip == "h200":
            return dataclasses.replace(row, program=compile_for_h200(fn, *shapes))
        known = op.known(*what, task.chip)
        compiled = fold_small(compile_for_tpu(fn, *shapes, chip=task.chip, known=known))
        scheduled_s = compiled.cycles / CHIPS[task.chip].clock
        row = _with_seconds(row, max(scheduled_s, row.memory_floor_s))
        return dataclasses.replace(row, program=compiled)
    except (NotImplementedError, IsolatedError) as error:
        return dataclasses.replace(row, refusal=_sentence(error))


def measure(task: Task, *, samples: int = 20) -> float:
    """Returns the median seconds of a call on the default device."""
    op = OPS[task.op]
    fn, _ = program(op, task.shape, task.implementation, task.passes)
    arrays, run = jax.block_until_ready(op.program_inputs(task.shape, task.passes)), jax.jit(fn)
    return median_seconds(lambda: run(*arrays), samples=samples)


def median_seconds(
    call, *, wait=jax.block_until_ready, samples: int = 20, longest_s: float = 60.0
) -> float:
    """Returns the median time of `call` after warming up.

    It takes fewer samples where they would take `longest_s`. A sample is several calls in a row, so
    that the time to launch them hides behind them.
    """
    wait(call())
    start = time.perf_counter()
    wait(call())
    once = time.perf_counter() - start
    calls = max(1, min(10, round(0.01 / once)))
    samples = max(3, min(samples, round(longest_s / (once * calls))))
    times = []
    for _ in range(samples):
        start = time.perf_counter()
        results = [call() for _ in range(calls)]
        wait(results)
        times.append((time.perf_counter() - start) / calls)
    return statistics.median(times)


def _floors(task: Task) -> Row:
    op = OPS[task.op]
    name = chip_of(jax.local_devices()[0].device_kind) if task.chip == "local" else task.chip
    flops = op.flops(task.shape, task.passes)
    least_bytes = op.least_bytes(task.shape, task.passes)
    return Row(
        op=task.op,
        chip=task.chip,
        implementation=task.implementation,
        shape=str(task.shape),
        units=task.shape.units,
        passes=task.passes,
        flops=flops,
        least_bytes=least_bytes,
        compute_floor_s=CHIPS[name].compute_s(flops) if name else None,
        memory_floor_s=CHIPS[name].memory_s(least_bytes) if name else None,
        made=provenance(),
    )


def _with_seconds(row: Row, seconds: float) -> Row:
    useful = row.compute_floor_s / seconds if row.compute_floor_s else None
    return dataclasses.replace(row, seconds=seconds, useful=useful)


def _sentence(error: Exception) -> str:
    """Returns the line of an error that says what is wrong.

    Of a traceback, it is the line of the exception.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "Error: " in line]
    return (named or lines or [type(error).__name__])[-1][:300]

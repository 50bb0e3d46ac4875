"""Writes the report as text: plain tables, or Markdown."""

import re
from collections.abc import Sequence

from pallas_kernels.hardware.chips import CHIPS
from pallas_kernels.hardware.gpu import GpuProgram
from pallas_kernels.hardware.tpu import TpuProgram
from pallas_kernels.report.rows import Row

_NOTE_CODE = re.compile(r"\((C\d+)\)")

TPU_COLUMNS = (
    "implementation",
    "pass",
    "shape",
    "cycles a token-head",
    "million cycles",
    "x floor",
    "matrix units occupied",
    "useful",
    "VALU",
    "XLU",
    "thousand fills / spills",
    "VMEM MiB",
    "HBM MiB (least)",
    "copied / least bytes",
    "largest kernel: steps x cycles",
)
KERNEL_COLUMNS = (
    "implementation",
    "pass",
    "shape",
    "kernel",
    "calls x steps x cycles",
    "million cycles",
    "of the program",
    "matrix units occupied",
    "loops not counted",
)
GPU_COLUMNS = (
    "implementation",
    "pass",
    "shape",
    "floor ms",
    "HBM MiB (least)",
    "kernel",
    "registers",
    "spill bytes",
    "SMEM KiB",
    "wgmma",
    "stall cycles",
    "loop: stall / tensor cycles",
    "ptxas notes",
)
LOCAL_COLUMNS = ("implementation", "pass", "shape", "measured ms", "floor ms", "x floor", "useful")


def floors(rows: Sequence[Row]) -> str:
    """Lists FLOP, bytes and floors of every shape and pass among the rows."""
    found = []
    for row in {(row.shape, row.passes): row for row in rows}.values():
        line = f"{row.shape} {row.passes}: {row.flops / 1e9:.1f} GFLOP"
        line += f", {row.least_bytes / 2**20:.0f} MiB"
        if row.floor_s is not None:
            line += f"; floor {row.compute_floor_s * 1e6:.0f} us compute"
            line += f", {row.memory_floor_s * 1e6:.0f} us memory"
        if row.floor_s is not None and row.chip in CHIPS and row.chip != "h200":
            cycles = row.floor_s * CHIPS[row.chip].clock / row.units
            line += f" = {cycles:.2f} cycles a token-head"
        found.append(line)
    return "\n".join(found)


def provenance(rows: Sequence[Row]) -> str:
    """Says which versions and which commit made the rows of each implementation."""
    made: dict[str, dict[str, None]] = {}
    for row in rows:
        made.setdefault(row.made, {})[row.implementation] = None
    return "\n".join(f"{', '.join(names)}: {versions}" for versions, names in made.items())


def columns(chip: str) -> tuple[str, ...]:
    return {"h200": GPU_COLUMNS, "local": LOCAL_COLUMNS}.get(chip, TPU_COLUMNS)


def lines(rows: Sequence[Row]) -> list[list[str]]:
    """Returns the lines of all rows.

    An implementation that refuses them all for one reason has one line.
    """
    found = []
    for name in {row.implementation: None for row in rows}:
        own = [row for row in rows if row.implementation == name]
        refusals = {row.refusal for row in own}
        if len(refusals) == 1 and None not in refusals:
            found.append([name, "all", "all", *refusals])
        else:
            found += [line for row in own for line in cells(row)]
    return found


def cells(row: Row) -> list[list[str]]:
    """Returns the lines of a row: one, or on a GPU one per kernel."""
    head = [row.implementation, row.passes, row.shape]
    if row.refusal:
        return [[*head, row.refusal]]
    if isinstance(row.program, TpuProgram):
        return [head + _tpu_cells(row, row.program)]
    if isinstance(row.program, GpuProgram):
        return _gpu_cells(row, head, row.program)
    floor = f"{row.floor_s * 1e3:.3f}" if row.floor_s else "-"
    return [[*head, f"{row.seconds * 1e3:.3f}", floor, _times(row), _share(row.useful)]]


def kernel_lines(rows: Sequence[Row], *, least_share: float = 0.02) -> list[list[str]]:
    """Lists the kernels of TPU rows that take at least a share of the cycles."""
    return [
        [
            row.implementation,
            row.passes,
            row.shape,
            kernel.name,
            f"{kernel.executions} x {kernel.grid_steps} x {kernel.step_cycles:.0f}",
            f"{kernel.cycles / 1e6:.3f}",
            _share(kernel.cycles / row.program.cycles),
            _share(kernel.slots["MATMUL"] / (row.program.capacity["MATMUL"] * kernel.cycles)),
            str(kernel.uncounted_loops),
        ]
        for row in rows
        if isinstance(row.program, TpuProgram)
        for kernel in row.program.kernels
        if kernel.cycles >= least_share * row.program.cycles
    ]


def memory_table(rows: Sequence[Row], form) -> str:
    """Tabulates peak device memory in MiB by length, in the form of `plain` or `markdown`."""
    lengths = sorted({row.shape.partition(" ")[0] for row in rows}, key=lambda x: int(x[1:]))
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        length, _, heads = row.shape.partition(" ")
        cell = f"{row.memory.peak / 2**20:.0f}" if row.memory else "-"
        found.setdefault((row.chip, row.implementation, row.passes, heads), {})[length] = cell
    names = ("chip", "implementation", "pass", "heads", *(f"{x} MiB" for x in lengths))
    body = [[*head, *(cells.get(x, "") for x in lengths)] for head, cells in found.items()]
    return form(names, body)


def markdown(names: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Makes a Markdown table; short lines are padded."""
    full = [[*line, *[""] * (len(names) - len(line))] for line in body]
    table = [names, ["---"] * len(names), *full]
    return "\n".join("| " + " | ".join(line) + " |" for line in table)


def plain(names: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Aligns columns, as wide as they must be; the last cell of a short line runs on."""
    widths = [len(name) for name in names]
    for line in body:
        aligned = line if len(line) == len(names) else line[:-1]
        widths[: len(aligned)] = map(max, widths, map(len, aligned))
    pad = lambda line: "  ".join(
        cell.ljust(width) for cell, width in zip(line, widths, strict=False)
    )
    return "\n".join(pad(line).rstrip() for line in [names, *body])


def _tpu_cells(row: Row, program: TpuProgram) -> list[str]:
    fills, spills = program.slots("VLOAD:FILL"), program.slots("VSTORE:SPILL")
    largest = program.kernels[0]
    return [
        f"{program.cycles / row.units:.2f}",
        f"{program.cycles / 1e6:.3f}",
        _times(row),
        _share(program.share("MATMUL")),
        _share(row.useful),
        _share(program.share("VALU")),
        _share(program.share("XLU")),
        f"{fills / 1e3:.0f} / {spills / 1e3:.0f}",
        f"{program.vmem_bytes / 2**20:.1f}",
        _memory(program.memory),
        "-" if program.dma_bytes is None else f"{program.dma_bytes / row.least_bytes:.2f}",
        f"{largest.name}: {largest.executions * largest.grid_steps} x {largest.step_cycles:.0f}",
    ]


def _gpu_cells(row: Row, head: list[str], program: GpuProgram) -> list[list[str]]:
    start = [*head, f"{row.floor_s * 1e3:.3f}", _memory(program.memory)]
    found = []
    for kernel in program.kernels:
        loop = kernel.loop
        found.append(
            [
                *start,
                kernel.name,
                str(kernel.registers),
                str(kernel.spill_bytes),
                f"{kernel.shared_memory / 1024:.1f}",
                str(kernel.wgmma),
                str(kernel.code.stall_cycles),
                f"{loop.stall_cycles} / {loop.tensor_cycles}" if loop else "-",
                ", ".join(_NOTE_CODE.findall(" ".join(kernel.notes))) or "-",
            ]
        )
    return found or [[*start, "XLA's own kernels only"]]


def _memory(memory) -> str:
    least = memory.arguments + memory.results
    return f"{memory.peak / 2**20:.0f} ({least / 2**20:.0f})"


def _times(row: Row) -> str:
    return "-" if row.over_floor is None else f"{row.over_floor:.2f}"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"

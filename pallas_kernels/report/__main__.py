"""`python -m pallas_kernels.report`: what the kernels cost on a target, at hand or not."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pallas_kernels.report import tables
from pallas_kernels.report.ops import OPS, PASSES
from pallas_kernels.report.records import merge, read, write
from pallas_kernels.report.rows import TARGETS, Row, Task, make_row


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    tasks = chosen_tasks(options)
    if not tasks:
        raise SystemExit(f"{options.op} has no such implementation for these targets")
    rows, known = [], read(options.json) if options.json and options.json.exists() else []
    for number, task in enumerate(tasks, 1):
        rows.append(_make_row(number, len(tasks), task))
        if options.json:
            write(options.json, merge(known, rows))
    if options.memory:
        print_memory(options, rows, merge(known, rows))
    else:
        print_costs(options, rows, merge(known, rows))


def print_costs(options, rows: Sequence[Row], kept: Sequence[Row]) -> None:
    for chip in {row.chip: None for row in rows}:
        print(f"\n{options.op} on {chip}\n\n{chip_report(chip, rows, tables.plain)}")
        if kernels := tables.kernel_lines([row for row in rows if row.chip == chip]):
            print(f"\n{tables.plain(tables.KERNEL_COLUMNS, kernels)}")
    print(f"\n{tables.provenance(rows)}")
    if options.markdown:
        replace_block(options.markdown, markdown_block(kept))


def print_memory(options, rows: Sequence[Row], kept: Sequence[Row]) -> None:
    print(f"\n{tables.memory_table(rows, tables.plain)}\n\n{tables.provenance(rows)}")
    if options.markdown:
        table = tables.memory_table(kept, tables.markdown)
        replace_block(options.markdown, f"{_made(kept)}\n\n{table}", "memory")


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m pallas_kernels.report", description=__doc__)
    found.add_argument("--op", choices=OPS, default="gated_delta")
    where = found.add_mutually_exclusive_group(required=True)
    where.add_argument("--target", choices=[*TARGETS, "local"], help="local: the device at hand")
    where.add_argument("--all-targets", action="store_true", help="every chip and what runs there")
    found.add_argument("--implementation", nargs="+", help="default: all")
    found.add_argument("--passes", nargs="+", choices=PASSES, default=PASSES)
    found.add_argument("--tokens", nargs="+", type=int, help="instead of the production lengths")
    found.add_argument("--heads", nargs="+", type=int, help="instead of the production heads")
    found.add_argument("--groups", nargs="+", type=int, help="heads a key head; default 1")
    found.add_argument("--window", nargs="+", type=int, help="of attention; default none")
    found.add_argument("--memory", action="store_true", help="only peak memory, by length")
    found.add_argument("--json", type=Path, help="file of every figure; its other rows stay")
    found.add_argument("--markdown", type=Path, help="page to put the tables of --json into")
    return found


def chosen_tasks(options) -> list[Task]:
    op = OPS[options.op]
    sizes = {name: getattr(options, name) for name in ("tokens", "heads", "groups", "window")}
    given = {name: values for name, values in sizes.items() if values}
    if unknown := set(given) - set(op.SIZES):
        raise SystemExit(f"{options.op} has no --{' and no --'.join(sorted(unknown))}")
    shapes = op.shapes(**given)
    return [
        Task(op=options.op, chip=chip, implementation=name, shape=shape, passes=passes)
        for chip in (TARGETS if options.all_targets else [options.target])
        for name in options.implementation or op.implementations()
        if not options.all_targets or chip in op.chips_worth_a_row(name)
        for shape in shapes
        for passes in options.passes
        if passes in op.PASSES
    ]


def chip_report(chip: str, rows: Sequence[Row], form) -> str:
    here = [row for row in rows if row.chip == chip]
    return f"{tables.floors(here)}\n\n{form(tables.columns(chip), tables.lines(here))}"


def markdown_block(rows: Sequence[Row]) -> str:
    """Returns the generated part of docs/kernels.md: every op and chip that the rows have."""
    rows = [row for row in rows if row.chip in TARGETS]
    parts = [_made(rows)]
    for op, chip in sorted({(row.op, row.chip) for row in rows}, key=_page_order):
        here = [row for row in rows if row.op == op]
        floors, _, table = chip_report(chip, here, tables.markdown).partition("\n\n")
        items = "\n".join(f"- {line}" for line in floors.splitlines())
        parts.append(f"### {op} on {chip}\n\n{items}\n\n{table}")
    return "\n\n".join(parts)


def _made(rows: Sequence[Row]) -> str:
    return "\n".join(f"- {line}" for line in tables.provenance(rows).splitlines())


def _page_order(op_and_chip: tuple[str, str]) -> tuple[int, int]:
    op, chip = op_and_chip
    return list(OPS).index(op), TARGETS.index(chip)


def replace_block(path: Path, block: str, name: str = "report") -> None:
    """Puts `block` between the two marks of that name in a file.

    Raises:
      ValueError: the file has no such marks.
    """
    begins, ends = marks(name)
    before, begin, rest = path.read_text().partition(begins)
    _, end, after = rest.partition(ends)
    if not begin or not end:
        raise ValueError(f"{path} lacks the marks {begins} and {ends}")
    path.write_text(f"{before}{begins}\n{block}\n{ends}{after}")


def marks(name: str) -> tuple[str, str]:
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def _make_row(number: int, total: int, task: Task) -> Row:
    what = f"{task.chip} {task.implementation} {task.shape} {task.passes}"
    print(f"[{number}/{total}] {what} ...", end=" ", file=sys.stderr, flush=True)
    start = time.monotonic()
    row = make_row(task)
    print(f"{row.refusal or 'done'} ({time.monotonic() - start:.0f} s)", file=sys.stderr)
    return row


if __name__ == "__main__":
    main()

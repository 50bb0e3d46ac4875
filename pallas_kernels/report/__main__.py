"""`python -m pallas_kernels.report`: what the kernels cost on a target, at hand or not."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pallas_kernels.report import tables
from pallas_kernels.report.chips import CHIPS
from pallas_kernels.report.ops import OPS, PASSES
from pallas_kernels.report.records import merge, read, write
from pallas_kernels.report.rows import Row, Task, make_row

BEGIN, END = "<!-- report: begin -->", "<!-- report: end -->"


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    targets = list(CHIPS) if options.all_targets else [options.target]
    tasks = [
        Task(op=options.op, chip=chip, implementation=name, shape=shape, passes=passes)
        for chip in targets
        for name in options.implementation or OPS[options.op].implementations()
        for shape in chosen_shapes(options)
        for passes in options.passes
    ]
    if not tasks:
        raise SystemExit(f"no production shape of {options.op} has these tokens and heads")
    rows, known = [], read(options.json) if options.json and options.json.exists() else []
    for number, task in enumerate(tasks, 1):
        rows.append(_make_row(number, len(tasks), task))
        if options.json:
            write(options.json, merge(known, rows))
    for chip in targets:
        print(f"\n{options.op} on {chip}\n\n{chip_report(chip, rows, tables.plain)}")
        if kernels := tables.kernel_lines([row for row in rows if row.chip == chip]):
            print(f"\n{tables.plain(tables.KERNEL_COLUMNS, kernels)}")
    print(f"\n{tables.provenance(rows)}")
    if options.markdown:
        page = [row for row in merge(known, rows) if row.op == options.op and row.chip in CHIPS]
        replace_block(options.markdown, markdown_block(options.op, page))


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m pallas_kernels.report", description=__doc__)
    found.add_argument("--op", choices=OPS, default="gated_delta")
    where = found.add_mutually_exclusive_group(required=True)
    where.add_argument("--target", choices=[*CHIPS, "local"], help="local: the device at hand")
    where.add_argument("--all-targets", action="store_true", help="every chip, none at hand")
    found.add_argument("--implementation", nargs="+", help="default: all")
    found.add_argument("--passes", nargs="+", choices=PASSES, default=PASSES)
    found.add_argument("--tokens", nargs="+", type=int, help="production shapes of these lengths")
    found.add_argument("--heads", nargs="+", type=int, help="and of these numbers of heads")
    found.add_argument("--json", type=Path, help="file of every figure; its other rows stay")
    found.add_argument("--markdown", type=Path, help="page to put the tables of --json into")
    return found


def chosen_shapes(options) -> list:
    return [
        shape
        for shape in OPS[options.op].SHAPES
        if (not options.tokens or shape.tokens in options.tokens)
        and (not options.heads or shape.heads in options.heads)
    ]


def chip_report(chip: str, rows: Sequence[Row], form) -> str:
    here = [row for row in rows if row.chip == chip]
    return f"{tables.floors(here)}\n\n{form(tables.columns(chip), tables.lines(here))}"


def markdown_block(op: str, rows: Sequence[Row]) -> str:
    """The generated part of docs/kernels.md."""
    parts = [tables.provenance(rows)]
    for chip in [name for name in CHIPS if any(row.chip == name for row in rows)]:
        floors, _, table = chip_report(chip, rows, tables.markdown).partition("\n\n")
        items = "\n".join(f"- {line}" for line in floors.splitlines())
        parts.append(f"### {op} on {chip}\n\n{items}\n\n{table}")
    return "\n\n".join(parts)


def replace_block(path: Path, block: str) -> None:
    """Puts `block` between the two marks of a file.

    Raises:
      ValueError: the file has no such marks.
    """
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} lacks the marks {BEGIN} and {END}")
    path.write_text(f"{before}{BEGIN}\n{block}\n{END}{after}")


def _make_row(number: int, total: int, task: Task) -> Row:
    what = f"{task.chip} {task.implementation} {task.shape} {task.passes}"
    print(f"[{number}/{total}] {what} ...", end=" ", file=sys.stderr, flush=True)
    start = time.monotonic()
    row = make_row(task)
    print(f"{row.refusal or 'done'} ({time.monotonic() - start:.0f} s)", file=sys.stderr)
    return row


if __name__ == "__main__":
    main()

"""Stores rows of the report in a JSON file, to add to or to make a page from later."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pallas_kernels.hardware.gpu import GpuProgram
from pallas_kernels.hardware.memory import Memory
from pallas_kernels.hardware.sass import Code, GpuKernel
from pallas_kernels.hardware.tpu import TpuKernel, TpuProgram
from pallas_kernels.report.rows import Row


def write(path: Path, rows: Sequence[Row]) -> None:
    path.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=0) + "\n")


def read(path: Path) -> list[Row]:
    return [
        Row(**{**fields, "program": _program(fields["program"])})
        for fields in json.loads(path.read_text())
    ]


def merge(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """Returns all rows; a new row replaces an old one of the same task."""
    key = lambda row: (row.op, row.chip, row.implementation, row.shape, row.passes)
    return list({**{key(row): row for row in old}, **{key(row): row for row in new}}.values())


def _program(fields: dict[str, Any] | None) -> TpuProgram | GpuProgram | None:
    if fields is None:
        return None
    is_tpu = "capacity" in fields
    kernels = tuple(map(_tpu_kernel if is_tpu else _gpu_kernel, fields["kernels"]))
    rest = {**fields, "kernels": kernels, "memory": Memory(**fields["memory"])}
    return TpuProgram(**rest) if is_tpu else GpuProgram(**rest)


def _tpu_kernel(fields: dict[str, Any]) -> TpuKernel:
    return TpuKernel(**fields)


def _gpu_kernel(fields: dict[str, Any]) -> GpuKernel:
    loop = fields["loop"] and Code(**fields["loop"])
    code, notes = Code(**fields["code"]), tuple(fields["notes"])
    return GpuKernel(**{**fields, "code": code, "loop": loop, "notes": notes})

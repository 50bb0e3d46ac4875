"""Checks the report: floors, and what a row says."""

import dataclasses

import pytest

from pallas_kernels.gated_delta.shapes import SHORT, SMALL, Shape
from pallas_kernels.hardware.chips import CHIPS, chip_of
from pallas_kernels.hardware.gpu import GpuProgram
from pallas_kernels.hardware.memory import Memory
from pallas_kernels.hardware.sass import Code, GpuKernel
from pallas_kernels.hardware.tpu import TpuKernel, TpuProgram, fold_small
from pallas_kernels.report import gated_delta, records, rows, tables
from pallas_kernels.report.ops import PASSES
from pallas_kernels.report.rows import Row, Task, make_row


def task(**changes):
    fields = {"op": "gated_delta", "chip": "v6e", "implementation": "chunked", "shape": SHORT}
    return Task(**{**fields, "passes": "forward", **changes})


def tpu_program(cycles=500_000.0):
    slots = {unit: cycles / 4 for unit in ("MATMUL", "VALU", "XLU", "VLOAD:FILL", "VSTORE:SPILL")}
    kernel = TpuKernel(
        name="made_up",
        executions=1,
        cycles=cycles,
        slots=slots,
        grid_steps=10,
        step_cycles=cycles / 10,
        vmem_bytes=3 << 20,
        uncounted_loops=0,
        dma_bytes=3e8,
    )
    return TpuProgram(
        device_kind="TPU v6 lite",
        capacity={"MATMUL": 2, "VALU": 4, "XLU": 2},
        kernels=(kernel,),
        memory=Memory(arguments=1 << 20, results=1 << 20, temporaries=1 << 20),
    )


def gpu_program():
    code = Code(instructions=10, wgmma=4, stall_cycles=30, tensor_cycles=20)
    kernel = GpuKernel(
        name="scan_0",
        registers=200,
        spill_bytes=8,
        shared_memory=2048,
        code=code,
        loop=code,
        notes=("(C7514) matrix products wait",),
    )
    return GpuProgram(
        kernels=(kernel, dataclasses.replace(kernel, loop=None)),
        memory=Memory(arguments=0, results=0, temporaries=0),
    )


@pytest.mark.parametrize(
    ("group", "forward", "backward"), [(1, 1032, 1808), (2, 776, 1296), (4, 648, 1040)]
)
def test_least_bytes_a_token_head(group, forward, backward):
    shape = Shape(tokens=100, heads=8, key_heads=8 // group)
    assert gated_delta.least_bytes(shape, "forward") == 800 * forward
    assert gated_delta.least_bytes(shape, "forward+backward") == 800 * (forward + backward)


def test_flops_a_token_head():
    forward = gated_delta.flops(SHORT, "forward") / SHORT.units
    both = gated_delta.flops(SHORT, "forward+backward") / SHORT.units
    assert round(forward, -2) == 166_600
    assert round(both - forward) == 491_520


@pytest.mark.parametrize(
    ("chip", "clock", "bytes_per_cycle"),
    [
        ("v5e", 1.5e9, 545),
        ("v4", 1.05e9, 1144),
        ("v5p", 1.75e9, 2 * 790),
        ("v6e", 1.75e9, 936),
        ("tpu7x", 2.2e9, 1677),
        ("h200", 1.83e9, 2625),
    ],
)
def test_peaks_of_a_device_agree_with_the_clock(chip, clock, bytes_per_cycle):
    found = CHIPS[chip]
    assert found.clock == pytest.approx(clock, rel=0.005)
    a_device = found.bandwidth * found.compiled_cores / found.cores / found.clock
    assert a_device == pytest.approx(bytes_per_cycle, rel=0.005)
    assert chip_of(found.device_kinds[0]) == chip


def test_floors_are_those_of_one_jax_device():
    assert CHIPS["tpu7x"].compute_s(2307e12) == 2  # a core is a device
    assert CHIPS["tpu7x"].memory_s(7380e9) == 2
    assert CHIPS["v5p"].compute_s(459e12) == 1  # both cores are one
    assert CHIPS["h200"].compute_s(989.4e12) == 1
    assert chip_of("cpu") is None


def test_schedule_gives_time_ratio_and_useful_share(monkeypatch):
    monkeypatch.setattr(rows, "compile_for_tpu", lambda *args, **kwargs: tpu_program())
    row = make_row(task())
    assert row.seconds == pytest.approx(500_000 / 1.751e9, rel=1e-3)
    assert row.memory_floor_s == pytest.approx(82.6e-6, rel=1e-2)
    assert row.over_floor == pytest.approx(500_000 / 1.751e9 / 82.6e-6, rel=1e-2)
    assert row.useful == pytest.approx(166_571 * SHORT.units / (524_288 * 500_000), rel=1e-3)
    (line,) = tables.cells(row)
    assert len(line) == len(tables.TPU_COLUMNS)
    named = dict(zip(tables.TPU_COLUMNS, line, strict=True))
    assert named["cycles a token-head"] == "3.81"
    assert named["matrix units occupied"] == "12.5%"
    assert named["useful"] == "8.3%"
    assert named["thousand fills / spills"] == "125 / 125"
    assert named["HBM MiB (least)"] == "3 (2)"
    assert named["copied / least bytes"] == "2.22"
    assert named["largest kernel: steps x cycles"] == "made_up: 10 x 50000"


def test_no_schedule_beats_the_memory_floor(monkeypatch):
    monkeypatch.setattr(rows, "compile_for_tpu", lambda *args, **kwargs: tpu_program(1000.0))
    assert make_row(task()).over_floor == 1


def test_rows_come_back_from_their_file(monkeypatch, tmp_path):
    monkeypatch.setattr(rows, "compile_for_tpu", lambda *args, **kwargs: tpu_program())
    monkeypatch.setattr(rows, "compile_for_h200", lambda *args: gpu_program())
    made = [make_row(task()), make_row(task(chip="h200"))]
    records.write(tmp_path / "rows.json", made)
    assert records.read(tmp_path / "rows.json") == made


def test_new_rows_replace_old_ones_of_the_same_task(monkeypatch):
    monkeypatch.setattr(rows, "compile_for_tpu", lambda *args, **kwargs: tpu_program())
    old = [make_row(task()), make_row(task(implementation="tpu"))]
    monkeypatch.setattr(rows, "compile_for_tpu", lambda *args, **kwargs: tpu_program(600_000.0))
    new = [make_row(task()), make_row(task(chip="v5e"))]
    assert records.merge(old, new) == [new[0], old[1], new[1]]


def test_small_kernels_are_added_up():
    (kernel,) = tpu_program().kernels
    small = dataclasses.replace(kernel, cycles=2000.0, slots={**kernel.slots, "VALU": 7.0})
    program = dataclasses.replace(tpu_program(), kernels=(kernel, small, small))
    folded = fold_small(program)
    assert [x.name for x in folded.kernels] == ["made_up", "others"]
    assert folded.cycles == program.cycles
    assert folded.slots("VALU") == program.slots("VALU")
    assert fold_small(tpu_program()) == tpu_program()


def test_gpu_row_has_a_line_a_kernel(monkeypatch):
    monkeypatch.setattr(rows, "compile_for_h200", lambda *args: gpu_program())
    lines = tables.cells(make_row(task(chip="h200")))
    assert [len(line) for line in lines] == [len(tables.GPU_COLUMNS)] * 2
    assert lines[0][-8:] == ["scan_0", "200", "8", "2.0", "4", "30", "30 / 20", "C7514"]
    assert lines[1][-2] == "-"


def test_refusals_are_told_once():
    made_up = dict(op="gated_delta", chip="v6e", implementation="gpu", units=1, flops=1.0)
    same = [
        Row(**made_up, least_bytes=1.0, shape=shape, passes=passes, refusal="needs Hopper")
        for shape in ("a", "b")
        for passes in PASSES
    ]
    assert tables.lines(same) == [["gpu", "all", "all", "needs Hopper"]]
    text = tables.markdown(tables.TPU_COLUMNS, tables.lines(same))
    assert all(line.count("|") == len(tables.TPU_COLUMNS) + 1 for line in text.splitlines())


def test_refusal_is_a_row_that_says_so(monkeypatch):
    def refuse(*args):
        raise NotImplementedError("head size 16; 64, 128 or 256 is accepted")

    monkeypatch.setattr(rows, "measure", refuse)
    refused = make_row(task(chip="local", shape=SMALL))
    assert refused.refusal == "head size 16; 64, 128 or 256 is accepted"
    assert refused.seconds is None


def test_columns_are_as_wide_as_their_cells():
    body = [["a" * 9, "b", "c"], ["dd", "a sentence that runs on"]]
    assert tables.plain(("x", "y", "z"), body).splitlines() == [
        "x          y  z",
        "aaaaaaaaa  b  c",
        "dd         a sentence that runs on",
    ]

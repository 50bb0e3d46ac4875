"""Checks attention in the report: the counted work, and how often kernel steps run what."""

import dataclasses

import jax
import numpy as np
import pytest

from pallas_kernels.attention.shapes import SHORT, SMALL, DecodeShape, Shape, regular_shape
from pallas_kernels.attention.tpu import op as tpu_op
from pallas_kernels.attention.tpu import rule
from pallas_kernels.hardware.memory import Memory
from pallas_kernels.hardware.tpu import compile_for_tpu
from pallas_kernels.report import __main__ as command
from pallas_kernels.report import attention, attention_decode, attention_schedules, rows, tables
from pallas_kernels.report.programs import program
from pallas_kernels.report.rows import Task, make_row
from tests.pallas_kernels.report.test_report import tpu_program


@pytest.mark.parametrize(("tokens", "window"), [(7, None), (7, 1), (7, 3), (7, 7), (7, 9)])
def test_pairs_are_those_that_the_mask_leaves(tokens, window):
    shape = regular_shape(tokens, 1, 1, window=window)
    seen = shape.visibility(np.arange(tokens)[:, None], np.arange(tokens))
    assert attention.seen_pairs(shape) == np.sum(np.asarray(seen))


def test_flops_and_least_bytes():
    forward = attention.flops(SHORT, "forward")
    assert forward == pytest.approx(16 * 4 * 128 * 8192**2 / 2, rel=2e-4)
    assert attention.flops(SHORT, "forward+backward") == 3.5 * forward
    array = 16 * 8192 * 128 * 2
    assert attention.least_bytes(SHORT, "forward") == 4 * array + 16 * 8192 * 4
    assert attention.least_bytes(SHORT, "forward+backward") == 12 * array + 2 * 16 * 8192 * 4
    assert attention.least_bytes(SMALL, "forward") == 256 * (3 * 2 + 2 * 2) * 32 + 256 * 3 * 4


def test_decode_reads_what_is_seen_of_heads_that_are_read():
    shape = DecodeShape(sequence=SMALL, rows=3)
    assert str(shape) == "B3 T256 N3 K4 (0,0,2) H16"
    assert attention_decode.least_bytes(shape, "forward") == 3 * (256 * 2 * 64 + 3 * (64 + 4))
    assert attention_decode.flops(shape, "forward") == 3 * 256 * 3 * 4 * 16


def test_shapes_of_production():
    names = ["T8192 N16 H128", "T32768 N16 H128"]
    names += ["T8192 N4 K8 (0,0,2,5) H128", "T32768 N4 K8 (0,0,2,5) H128"]
    assert list(map(str, attention.shapes())) == names
    told = ["--op", "attention", "--target", "v6e", "--implementation", "tpu"]
    told += ["--tokens", "4096", "--groups", "2", "--window", "512"]
    tasks = command.chosen_tasks(command.parser().parse_args(told))
    assert {str(task.shape) for task in tasks} == {"T4096 N16 K8 H128 W512"}
    assert {task.passes for task in tasks} == {"forward", "forward+backward"}
    told[1] = "attention_decode"
    tasks = command.chosen_tasks(command.parser().parse_args(told))
    assert [task.passes for task in tasks] == ["forward"]
    with pytest.raises(SystemExit, match="gated_delta has no --window"):
        command.chosen_tasks(command.parser().parse_args(told[2:]))


@pytest.mark.parametrize("op", ["attention", "attention_decode"])
def test_command_measures_the_device_at_hand(op, monkeypatch, capsys):
    shape = SMALL if op == "attention" else DecodeShape(sequence=SMALL, rows=2)
    monkeypatch.setattr(command.OPS[op], "shapes", lambda **sizes: [shape])
    command.main(["--op", op, "--target", "local", "--implementation", "reference", "chunked"])
    lines = capsys.readouterr().out.splitlines()
    measured = [line for line in lines if f"{shape}  " in line and not line.startswith(str(shape))]
    assert len(measured) == 2 * len(command.OPS[op].PASSES)


@pytest.mark.parametrize("passes", attention.PASSES)
@pytest.mark.parametrize("window", [None, 600])
@pytest.mark.parametrize("heads", [(0, 1), (0, 0, 2)])
def test_shares_are_those_of_the_lists_that_the_kernels_get(heads, window, passes, monkeypatch):
    """The lists are made again from the arguments that the op gives while it is traced."""
    shape = Shape(tokens=5000, kv_head_of_query=heads, kv_heads=3, window=window)
    lists = []

    def listed(**arguments):
        lists.append(tpu_list(**arguments))
        return lists[-1]

    tpu_list = rule.list_steps
    monkeypatch.setattr(rule, "list_steps", listed)
    monkeypatch.setattr(tpu_op, "_check", lambda *arrays: None)
    fn, arguments = program(attention, shape, "tpu", passes)

    jax.eval_shape(fn, *arguments)
    known = attention_schedules.ours(shape, passes, "v6e")
    assert len(lists) == len(known) == 1 + (passes != "forward")
    for steps, (name, found) in zip(lists, known.items(), strict=True):
        assert name in ("attention_forward", "attention_backward")
        for test, share in found.shares.items():
            bit = int(test.split()[1])
            assert share == np.mean((np.asarray(steps.words) & bit) != 0) > 0


@pytest.mark.tpu_compiler
@pytest.mark.parametrize("implementation", ["tpu", pytest.param("splash", marks=pytest.mark.heavy)])
def test_an_empty_or_masked_block_is_counted_as_such(implementation):
    """Cycles of a kernel follow the area of its mask: twice the length, not four times."""
    cycles = []
    for tokens in (4096, 8192):
        shape = regular_shape(tokens, 1, 1, window=1024)
        fn, arguments = program(attention, shape, implementation, "forward")
        known = attention.known(shape, implementation, "forward", "v6e")
        compiled = compile_for_tpu(fn, *arguments, chip="v6e", known=known)
        cycles.append(compiled.kernels[0].cycles)
    assert 1.8 < cycles[1] / cycles[0] < 2.4


def test_memory_by_length(monkeypatch, tmp_path, capsys):
    memory = lambda tokens: Memory(arguments=tokens << 10, results=tokens << 10, temporaries=0)

    def compiled(fn, q, *others, **kwargs):
        return dataclasses.replace(tpu_program(), memory=memory(q.shape[1]))

    monkeypatch.setattr(rows, "compile_for_tpu", compiled)
    page = tmp_path / "page.md"
    begin, end = command.marks("memory")
    page.write_text(f"{begin}\nold\n{end}\n")
    options = ["--op", "attention", "--target", "v6e", "--implementation", "tpu", "--heads", "16"]
    options += ["--tokens", "8192", "16384", "--memory", "--passes", "forward"]
    command.main([*options, "--markdown", str(page)])
    assert "T16384 MiB" in capsys.readouterr().out
    assert "| v6e | tpu | forward | N16 H128 | 16 | 32 |" in page.read_text()


def test_peers_of_one_device_are_refused_where_heads_are_irregular():
    task = Task(
        op="attention", chip="local", implementation="tokamax splash", shape=SMALL, passes="forward"
    )
    refused = make_row(task)
    assert "irregular" in refused.refusal or "not installed" in refused.refusal
    assert tables.lines([refused]) == [["tokamax splash", "all", "all", refused.refusal]]

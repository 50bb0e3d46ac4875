"""Checks the report's command, and the page that it fills."""

import functools
import itertools

import pytest

from pallas_kernels.gated_delta.shapes import SMALL
from pallas_kernels.report import __main__ as command
from pallas_kernels.report import gated_delta, records, tables
from pallas_kernels.report.ops import OPS, PASSES
from pallas_kernels.report.rows import TARGETS
from tests.root import ROOT

BEGIN, END = command.marks("report")
PAGE = ROOT / "docs" / "kernels.md"


@pytest.fixture
def small_op(monkeypatch):
    monkeypatch.setattr(gated_delta, "shapes", lambda **sizes: [SMALL])


def test_command_measures_the_device_at_hand(small_op, capsys, tmp_path):
    path = tmp_path / "report.json"
    command.main(["--target", "local", "--implementation", "chunked", "--json", str(path)])
    out = capsys.readouterr().out
    assert "T64 N2 K1 H16" in out
    assert all(column in out for column in tables.LOCAL_COLUMNS)
    found = records.read(path)
    assert [row.passes for row in found] == list(PASSES)
    assert all(row.seconds > 0 for row in found)
    assert all("jax " in row.made and "commit " in row.made for row in found)
    command.main(["--target", "local", "--implementation", "reference", "--json", str(path)])
    both = records.read(path)
    assert both[:2] == found
    assert [row.implementation for row in both] == ["chunked"] * 2 + ["reference"] * 2


@pytest.mark.tpu_compiler
def test_command_reads_a_real_schedule_and_fills_the_page(small_op, capsys, tmp_path):
    path = tmp_path / "page.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    arguments = ["--target", "v6e", "--implementation", "chunked", "--passes", "forward"]
    command.main([*arguments, "--markdown", str(path)])
    assert "cycles a token-head" in capsys.readouterr().out
    page = path.read_text()
    assert page.startswith(f"before\n{BEGIN}\n- chunked: commit ")
    assert page.endswith(f"{END}\nafter\n")
    assert "old" not in page
    (header, _, line) = [text for text in page.splitlines() if text.startswith("|")]
    assert header == "| " + " | ".join(tables.TPU_COLUMNS) + " |"
    cycles = float(line.split("|")[4])
    assert 10 < cycles < 1e4


def test_page_without_marks_is_refused(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("no marks")
    with pytest.raises(ValueError, match="lacks the marks"):
        command.replace_block(path, "x")


def test_shapes_are_those_of_production_unless_told_otherwise():
    production = [(x.tokens, x.heads, x.key_heads) for x in gated_delta.shapes()]
    assert production == [(8192, 16, 16), (8192, 32, 32), (32768, 16, 16), (32768, 32, 32)]
    arguments = ["--target", "v6e", "--implementation", "tpu", "--passes", "forward"]
    told = ["--tokens", "2048", "131072", "--heads", "16", "--groups", "2"]
    tasks = command.chosen_tasks(command.parser().parse_args([*arguments, *told]))
    assert [str(task.shape) for task in tasks] == ["T2048 N16 K8 H128", "T131072 N16 K8 H128"]


def test_all_targets_are_those_that_an_implementation_is_for():
    options = command.parser().parse_args(["--all-targets"])
    tasks = command.chosen_tasks(options)
    for name, chips in {"tpu": ["v5e", "v5p", "v6e", "tpu7x"], "chunked": ["v6e", "h200"]}.items():
        own = [task for task in tasks if task.implementation == name]
        assert list(dict.fromkeys(task.chip for task in own)) == chips
        assert len(own) == len(chips) * len(gated_delta.shapes()) * len(PASSES)
    assert "reference" not in {task.implementation for task in tasks}


@functools.cache
def page_sections() -> dict[str, str]:
    block = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    head, *sections = block.split("\n### ")
    assert "chunked" in head and ": commit " in head and "jax " in head
    return {text.partition("\n")[0]: text for text in sections}


@pytest.mark.parametrize("chip", TARGETS)
@pytest.mark.parametrize("op", OPS)
def test_page_has_what_the_command_writes(op, chip):
    names = [name for name in OPS[op].implementations() if chip in OPS[op].chips_worth_a_row(name)]
    if not names:
        assert f"{op} on {chip}" not in page_sections()
        return
    section = page_sections()[f"{op} on {chip}"]
    header, dashes, *body = [line for line in section.splitlines() if line.startswith("|")]
    assert header == "| " + " | ".join(tables.columns(chip)) + " |"
    assert dashes == "| " + " | ".join(["---"] * len(tables.columns(chip))) + " |"
    found = {tuple(cell.strip() for cell in line.split("|")[1:4]) for line in body}
    for name in names:
        every = itertools.product(OPS[op].PASSES, OPS[op].shapes())
        assert {(name, passes, str(shape)) for passes, shape in every} <= found
    for shape in OPS[op].shapes():
        assert f"- {shape} forward: " in section

"""Compiles the TPU attention kernels with the real compiler, at production shapes, TPU-free."""

import pytest

from pallas_kernels.attention.shapes import SHORT, Shape, four_of_sixteen, regular_shape
from pallas_kernels.report.rows import Task, make_row

pytestmark = pytest.mark.tpu_compiler


def row(shape: Shape, passes: str, chip: str):
    found = make_row(
        Task(op="attention", chip=chip, implementation="tpu", shape=shape, passes=passes)
    )
    assert found.refusal is None, found.refusal
    return found


def cycles(row, kernel: str = "") -> float:
    """Returns the cycles per token and head, of all that runs or of one kernel."""
    named = [x.cycles for x in row.program.kernels if x.name.startswith(kernel)]
    assert named
    return sum(named) / row.units


@pytest.fixture(scope="module")
def all_heads():
    return row(SHORT, "forward+backward", "v6e")


@pytest.mark.heavy
def test_cycles_on_v6e(all_heads):
    """The bounds are the best of JAX's and tokamax's splash with any block size."""
    assert cycles(all_heads, "attention_forward") <= 14.3
    assert cycles(all_heads) - cycles(all_heads, "attention_forward") <= 28.0


@pytest.mark.heavy
def test_four_irregular_heads_cost_a_quarter_of_sixteen(all_heads):
    few = row(four_of_sixteen(SHORT.tokens), "forward+backward", "v6e")
    assert few.program.cycles <= 1.1 * all_heads.program.cycles * 4 / 16


def test_a_window_costs_what_is_in_it():
    """Blocks outside take no step: 8 times as many tokens cost 8 times as much."""
    short, long = (
        row(regular_shape(tokens, 1, 1, window=1024), "forward", "v6e").program.cycles
        for tokens in (8192, 65536)
    )
    assert long <= 8.5 * short


@pytest.mark.heavy
@pytest.mark.parametrize(("chip", "tokens"), [("v5e", 8192), ("v5p", 32768), ("tpu7x", 32768)])
def test_compiles_forward_and_backward(chip, tokens):
    """At 32768 tokens the backward pass takes keys in parts.

    `make kernels-report` tries the rest.
    """
    shape = Shape(tokens=tokens, kv_head_of_query=(0, 0), kv_heads=1)
    found = row(shape, "forward+backward", chip)
    names = {x.name.split(".")[0] for x in found.program.kernels}
    assert {"attention_forward", "attention_backward"} <= names

"""Compiles the TPU kernels with the real compiler, at production shapes, without a TPU."""

import pytest

from pallas_kernels.gated_delta.shapes import LONG, SHORT, Shape
from pallas_kernels.hardware.tpu import compile_for_tpu
from pallas_kernels.report import gated_delta
from pallas_kernels.report.programs import program

pytestmark = pytest.mark.tpu_compiler


def cycles_a_token_head(shape: Shape, passes: str, chip: str) -> float:
    fn, arguments = program(gated_delta, shape, "tpu", passes)
    found = compile_for_tpu(fn, *arguments, chip=chip)
    names = " ".join(kernel.name for kernel in found.kernels)
    assert "gated_delta_forward" in names
    assert ("gated_delta_backward" in names) == (passes == "forward+backward")
    return found.cycles / shape.units


@pytest.mark.parametrize(
    ("passes", "bound"),
    [("forward", 4.0), pytest.param("forward+backward", 10.5, marks=pytest.mark.heavy)],
)
def test_cycles_on_v6e(passes, bound):
    """All that runs counts: kernels, copies, sums of the gates. Waits for memory do not count."""
    assert cycles_a_token_head(SHORT, passes, "v6e") <= bound


@pytest.mark.heavy
@pytest.mark.parametrize("chip", ["v5e", "v5p", "tpu7x"])
def test_compiles_forward_and_backward(chip):
    assert cycles_a_token_head(LONG, "forward+backward", chip) < 20

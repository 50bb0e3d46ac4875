"""Compiles the TPU kernels of slot attention with the real compiler, without a TPU."""

import pytest

from pallas_kernels.hardware.tpu import compile_for_tpu
from pallas_kernels.report import slot_attention
from pallas_kernels.report.programs import program
from pallas_kernels.slot_attention.shapes import SHORT


@pytest.mark.tpu_compiler
@pytest.mark.parametrize(
    ("passes", "bound"),
    [("forward", 3.2), pytest.param("forward+backward", 8.2, marks=pytest.mark.heavy)],
)
def test_cycles_a_token_and_query_head_on_v6e(passes, bound):
    """All that runs counts, not only the kernels. Waits for memory do not count."""
    fn, arguments = program(slot_attention, SHORT, "tpu", passes)
    found = compile_for_tpu(fn, *arguments, chip="v6e")
    names = " ".join(kernel.name for kernel in found.kernels)
    assert "slot_attention_forward" in names
    assert ("slot_attention_backward" in names) == (passes == "forward+backward")
    assert found.cycles / SHORT.units <= bound

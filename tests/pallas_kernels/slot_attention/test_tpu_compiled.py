"""Compiles the TPU kernels of slot attention with the real compiler, without a TPU."""

import pytest

from pallas_kernels.hardware.tpu import compile_for_tpu
from pallas_kernels.report import slot_attention
from pallas_kernels.report.programs import program
from pallas_kernels.slot_attention.shapes import SHORT


@pytest.mark.tpu_compiler
def test_cycles_a_token_and_query_head_on_v6e():
    """All that runs counts, not only the kernels. Waits for memory do not count."""
    fn, arguments = program(slot_attention, SHORT, "tpu", "forward+backward")
    found = compile_for_tpu(fn, *arguments, chip="v6e")
    names = " ".join(kernel.name for kernel in found.kernels)
    assert "slot_attention_forward" in names and "slot_attention_backward" in names
    assert found.cycles / SHORT.units <= 8.2

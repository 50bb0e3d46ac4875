"""Compiles the TPU kernel over an encoded cache with the real compiler, at production shapes."""

import pytest

from pallas_kernels.attention.shapes import DecodeShape, four_of_sixteen, regular_shape
from pallas_kernels.hardware.chips import CHIPS
from pallas_kernels.hardware.tpu import compile_for_tpu
from pallas_kernels.report import attention_decode_packed as op
from pallas_kernels.report.programs import program

pytestmark = pytest.mark.tpu_compiler


@pytest.mark.parametrize(
    ("chip", "sequence", "most"),
    [
        ("v6e", regular_shape(512, 16, 8), 3.0),
        *(
            pytest.param(*values, marks=pytest.mark.heavy)
            for values in (
                ("v6e", regular_shape(32768, 16, 8), 1.0),
                ("v6e", four_of_sixteen(32768), 1.4),
                ("v6e", regular_shape(8192, 16, 8, head_size=256), 1.0),
                ("v5e", regular_shape(32768, 16, 8), 1.0),
                ("tpu7x", regular_shape(32768, 16, 8), 1.6),
            )
        ),
    ],
)
def test_it_moves_the_cache_once_and_waits_for_memory(chip, sequence, most):
    """Its schedule takes less time than its bytes, but for TPU7x, few heads and few slots."""
    shape = DecodeShape(sequence=sequence)
    fn, arguments = program(op, shape, "tpu", "forward")
    known = op.known(shape, "tpu", "forward", chip)
    compiled = compile_for_tpu(fn, *arguments, chip=chip, known=known)
    kernel = next(x for x in compiled.kernels if x.name.startswith("attention_decode_packed"))
    least = op.least_bytes(shape, "forward")
    assert compiled.dma_bytes <= 1.05 * least
    assert compiled.memory.temporaries < 0.01 * least
    assert kernel.cycles / CHIPS[chip].clock < most * CHIPS[chip].memory_s(least)

"""Checks the decode step over an encoded cache in the report: the counted bytes and the program."""

import jax

from pallas_kernels.attention.shapes import DecodeShape, regular_shape
from pallas_kernels.report import attention_decode_packed
from pallas_kernels.report.programs import program


def test_least_bytes_are_codes_and_scales_of_heads_that_are_read():
    shape = DecodeShape(sequence=regular_shape(64, 4, 2), rows=3)
    least = attention_decode_packed.least_bytes(shape, "forward")
    assert least == 3 * (64 * 2 * 136 + 4 * (4 * 128 + 4))
    fn, arguments = program(attention_decode_packed, shape, "chunked", "forward")
    out, lse = jax.eval_shape(fn, *arguments)
    assert out.shape == (3, 4 * 128) and lse.shape == (3, 4)
    cache = arguments[1]
    assert sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache)) == 3 * 64 * 2 * 136

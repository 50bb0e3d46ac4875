"""Compiles the decode kernel with the real TPU compiler, at production shapes, without a TPU."""

import functools

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import attention_decode
from pallas_kernels.hardware.tpu import TpuKernel, TpuProgram, compile_for_tpu

pytestmark = pytest.mark.tpu_compiler
HBM_BYTES_A_CYCLE = {"v5e": 819 / 1.5, "v6e": 1640 / 1.75, "v5p": 2765 / 1.75}
ROWS = 8


def compiled(chip: str, S: int, K: int, N: int, H: int) -> tuple[TpuProgram, TpuKernel]:
    shape = jax.ShapeDtypeStruct
    heads = tuple(n * K // N for n in range(N))
    decode = functools.partial(
        attention_decode, kv_head_of_query=heads, return_lse=True, implementation="tpu"
    )
    cache = shape((ROWS, S, K, H), jnp.bfloat16)
    query, lengths = shape((ROWS, N, H), jnp.bfloat16), shape((ROWS,), jnp.int32)
    program = compile_for_tpu(decode, query, cache, cache, lengths, chip=chip)
    kernels = (kernel for kernel in program.kernels if kernel.name.startswith("attention_decode"))
    return program, next(kernels)


@pytest.mark.parametrize(
    ("chip", "S", "K", "N", "H"),
    [
        ("v6e", 8192, 8, 32, 128),
        ("v6e", 32768, 4, 16, 128),
        ("v6e", 8192, 3, 16, 128),
        ("v6e", 8192, 8, 32, 64),
        ("v6e", 8192, 8, 32, 256),
        ("v5e", 8192, 8, 32, 128),
        ("v5p", 32768, 8, 32, 128),
    ],
)
def test_it_waits_for_memory_and_copies_no_cache(chip, S, K, N, H):
    """Its schedule takes less time than reading the cache, which stays as XLA stored it."""
    program, kernel = compiled(chip, S, K, N, H)
    cache_bytes = 2 * ROWS * S * K * H * 2
    assert kernel.cycles < 0.9 * cache_bytes / HBM_BYTES_A_CYCLE[chip]
    assert program.memory.temporaries < 0.01 * cache_bytes
    assert program.cycles - kernel.cycles < 0.05 * kernel.cycles


def test_it_compiles_for_tpu7x():
    program, kernel = compiled("tpu7x", 32768, 8, 32, 128)
    assert kernel.cycles > 0
    assert program.memory.temporaries < 1 << 20

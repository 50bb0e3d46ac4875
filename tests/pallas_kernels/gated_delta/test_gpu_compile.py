"""Compiles the Hopper kernels with the real compiler, for an H200, without one."""

import functools

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.gated_delta.gpu.step import gated_delta_step_gpu
from pallas_kernels.hardware.gpu import compile_for_h200
from tests.pallas_kernels.gated_delta.suite import call
from tests.pallas_kernels.kit.compiled import assert_compiled_well, by_shards, names, with_gradients

SCALE = 128**-0.5
KERNELS = {f"gated_delta_{x}" for x in ("intra", "scan", "sweeps", "gradients")}


def shapes(*, batch: int, length: int, key_heads: int, value_heads: int):
    B, T, K, N = batch, length, key_heads, value_heads
    array = jax.ShapeDtypeStruct
    keys = array((B, T, K, 128), jnp.bfloat16)
    gate = array((B, T, N), jnp.float32)
    values, state = array((B, T, N, 128), jnp.bfloat16), array((B, N, 128, 128), jnp.float32)
    return keys, keys, values, gate, gate, state


def forward_and_backward(*arrays):
    return with_gradients(call("gpu", False), *arrays)


@pytest.mark.gpu_compiler
def test_forward_and_backward_compile_at_production_size():
    sizes = shapes(batch=1, length=8192, key_heads=16, value_heads=16)
    program = compile_for_h200(forward_and_backward, *sizes)
    assert names(program) == KERNELS
    assert_compiled_well(program, loops=False)
    scans = [x for x in program.kernels if "scan" in x.name or "sweeps" in x.name]
    assert len(scans) > 1 and all(kernel.loop.wgmma > 0 for kernel in scans)


@pytest.mark.gpu_compiler
def test_step_compiles_without_spills():
    sizes = shapes(batch=8, length=1, key_heads=16, value_heads=32)
    tokens = [jax.ShapeDtypeStruct((8, *x.shape[2:]), x.dtype) for x in sizes[:5]]
    step = functools.partial(gated_delta_step_gpu, scale=SCALE)
    (kernel,) = compile_for_h200(step, *tokens, sizes[5]).kernels
    assert kernel.spill_bytes == 0


@pytest.mark.heavy
@pytest.mark.gpu_compiler
def test_compiles_under_shard_map():
    sizes = shapes(batch=2, length=128, key_heads=1, value_heads=2)
    program = compile_for_h200(functools.partial(by_shards, forward_and_backward), *sizes)
    assert names(program) == KERNELS

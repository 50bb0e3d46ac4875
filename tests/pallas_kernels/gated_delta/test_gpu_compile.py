"""Compiles the Hopper kernels with the real compiler, for an H200, without one."""

import functools

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.gated_delta.gpu.step import gated_delta_step_gpu
from pallas_kernels.hardware.gpu import compile_for_h200
from tests.pallas_kernels.gated_delta.suite import call

SHARED_MEMORY = 232448  # bytes a program of an H200 can have
SCALE = 128**-0.5
KERNELS = ("intra", "scan", "sweeps", "gradients")


def shapes(*, batch: int, length: int, key_heads: int, value_heads: int):
    B, T, K, N = batch, length, key_heads, value_heads
    array = jax.ShapeDtypeStruct
    keys = array((B, T, K, 128), jnp.bfloat16)
    gate = array((B, T, N), jnp.float32)
    values, state = array((B, T, N, 128), jnp.bfloat16), array((B, N, 128, 128), jnp.float32)
    return keys, keys, values, gate, gate, state


def forward_and_backward(*arrays):
    results, pull = jax.vjp(call("gpu", False), *arrays)
    return results, pull(jax.tree.map(jnp.ones_like, results))


@pytest.mark.gpu_compiler
def test_forward_and_backward_compile_at_production_size():
    sizes = shapes(batch=1, length=8192, key_heads=16, value_heads=16)
    program = compile_for_h200(forward_and_backward, *sizes)
    kernels = {kernel.name.rsplit("_", 1)[0]: kernel for kernel in program.kernels}
    assert set(kernels) == {f"gated_delta_{x}" for x in KERNELS}
    for name, kernel in kernels.items():
        assert kernel.spill_bytes == 0, name
        assert kernel.shared_memory <= SHARED_MEMORY, name
        assert kernel.wgmma > 0, name
        assert not [note for note in kernel.notes if "serialized" in note], name
    for scan in ("scan", "sweeps"):
        assert kernels[f"gated_delta_{scan}"].loop.wgmma > 0


@pytest.mark.gpu_compiler
def test_step_compiles_without_spills():
    sizes = shapes(batch=8, length=1, key_heads=16, value_heads=32)
    tokens = [jax.ShapeDtypeStruct((8, *x.shape[2:]), x.dtype) for x in sizes[:5]]
    step = functools.partial(gated_delta_step_gpu, scale=SCALE)
    (kernel,) = compile_for_h200(step, *tokens, sizes[5]).kernels
    assert kernel.spill_bytes == 0


def forward_and_backward_by_shards(*arrays):
    shard = jax.sharding.PartitionSpec("chip")
    mesh = jax.sharding.get_abstract_mesh()
    return jax.shard_map(forward_and_backward, mesh=mesh, in_specs=shard, out_specs=shard)(*arrays)


@pytest.mark.heavy
@pytest.mark.gpu_compiler
def test_compiles_under_shard_map():
    sizes = shapes(batch=2, length=128, key_heads=1, value_heads=2)
    program = compile_for_h200(forward_and_backward_by_shards, *sizes)
    names = {kernel.name.rsplit("_", 1)[0] for kernel in program.kernels}
    assert names == {f"gated_delta_{x}" for x in KERNELS}

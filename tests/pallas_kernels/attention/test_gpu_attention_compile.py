"""Compiles the Hopper attention kernels with the real compiler, for an H200, without one."""

import functools

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import attention, attention_decode
from pallas_kernels.attention.gpu.blocks import SHARED_MEMORY
from pallas_kernels.hardware.gpu import compile_for_h200

HEADS = (0, 2, 2, 3)
heavy = functools.partial(pytest.param, marks=pytest.mark.heavy)
KERNELS = {f"attention_{x}" for x in ("forward", "dq", "dkv")}


def shapes(length: int, head_dim: int, batch: int = 1):
    queries, keys = (
        jax.ShapeDtypeStruct((batch, length, heads, head_dim), jnp.bfloat16)
        for heads in (len(HEADS), max(HEADS) + 1)
    )
    return queries, keys, keys


def forward_and_backward(q, k, v, *ids, causal=True, window=None):
    call = functools.partial(
        attention,
        segment_ids_BT=ids[0] if ids else None,
        kv_head_of_query=HEADS,
        causal=causal,
        window=window,
        return_lse=True,
        implementation="gpu",
    )
    results, pull = jax.vjp(call, q, k, v)
    return results, pull(jax.tree.map(jnp.ones_like, results))


def assert_compiled_well(kernels) -> None:
    for kernel in kernels:
        assert kernel.spill_bytes == 0, kernel.name
        assert kernel.shared_memory <= SHARED_MEMORY, kernel.name
        assert kernel.wgmma > 0 and kernel.loop.wgmma > 0, kernel.name
        assert not [note for note in kernel.notes if "serialized" in note], kernel.name


def names(kernels) -> set[str]:
    return {kernel.name.rsplit("_", 1)[0] for kernel in kernels}


@pytest.mark.gpu_compiler
@pytest.mark.parametrize(("length", "head_dim"), [(8192, 64), heavy(32768, 128), heavy(8192, 256)])
def test_forward_and_backward_compile_without_spills(length, head_dim):
    kernels = compile_for_h200(forward_and_backward, *shapes(length, head_dim)).kernels
    assert names(kernels) == KERNELS
    assert_compiled_well(kernels)


@pytest.mark.heavy
@pytest.mark.gpu_compiler
def test_segments_in_a_window_compile_without_spills():
    ids = jax.ShapeDtypeStruct((1, 8192), jnp.int32)
    fn = functools.partial(forward_and_backward, window=512)
    assert_compiled_well(compile_for_h200(fn, *shapes(8192, 128), ids, ids).kernels)


def decode(q, k, v, lengths, ids, cache_ids):
    segments = dict(segment_ids_B=ids, kv_segment_ids_BS=cache_ids)
    settings = dict(kv_head_of_query=HEADS, return_lse=True, implementation="gpu")
    return attention_decode(q, k, v, lengths, **segments, **settings)


@pytest.mark.gpu_compiler
@pytest.mark.parametrize("head_dim", [128, heavy(256)])
def test_decode_compiles_without_spills(head_dim):
    q, k, v = shapes(32768, head_dim, batch=2)
    q = jax.ShapeDtypeStruct((2, *q.shape[2:]), q.dtype)
    ids, cache_ids = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((2,), (2, 32768)))
    kernels = compile_for_h200(decode, q, k, v, ids, ids, cache_ids).kernels
    assert names(kernels) == {"attention_decode"}
    assert_compiled_well(kernels)


def forward_and_backward_by_shards(*arrays):
    shard = jax.sharding.PartitionSpec("chip")
    mesh = jax.sharding.get_abstract_mesh()
    run = functools.partial(forward_and_backward, causal=False)
    return jax.shard_map(run, mesh=mesh, in_specs=shard, out_specs=shard)(*arrays)


@pytest.mark.heavy
@pytest.mark.gpu_compiler
def test_compiles_under_shard_map_and_without_a_causal_mask():
    """A ring of devices needs both."""
    ids = jax.ShapeDtypeStruct((2, 256), jnp.int32)
    program = compile_for_h200(forward_and_backward_by_shards, *shapes(256, 64, batch=2), ids, ids)
    assert names(program.kernels) == KERNELS

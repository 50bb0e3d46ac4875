"""Compiles the Hopper attention kernels with the real compiler, for an H200, without one."""

import functools

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import attention, attention_decode
from pallas_kernels.hardware.gpu import compile_for_h200
from tests.pallas_kernels.kit.compiled import (
    assert_compiled_well,
    by_shards,
    names,
    queries_and_keys,
    with_gradients,
)

HEADS = (0, 2, 2, 3)
heavy = functools.partial(pytest.param, marks=pytest.mark.heavy)
KERNELS = {f"attention_{x}" for x in ("forward", "dq", "dkv")}


shapes = functools.partial(queries_and_keys, HEADS)


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
    return with_gradients(call, q, k, v)


@pytest.mark.gpu_compiler
@pytest.mark.parametrize(("length", "head_dim"), [(8192, 64), heavy(32768, 128), heavy(8192, 256)])
def test_forward_and_backward_compile_without_spills(length, head_dim):
    program = compile_for_h200(forward_and_backward, *shapes(length, head_dim))
    assert names(program) == KERNELS
    assert_compiled_well(program)


@pytest.mark.heavy
@pytest.mark.gpu_compiler
def test_segments_in_a_window_compile_without_spills():
    ids = jax.ShapeDtypeStruct((1, 8192), jnp.int32)
    fn = functools.partial(forward_and_backward, window=512)
    assert_compiled_well(compile_for_h200(fn, *shapes(8192, 128), ids, ids))


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
    program = compile_for_h200(decode, q, k, v, ids, ids, cache_ids)
    assert names(program) == {"attention_decode"}
    assert_compiled_well(program)


@pytest.mark.heavy
@pytest.mark.gpu_compiler
def test_compiles_under_shard_map_and_without_a_causal_mask():
    """A ring of devices needs both."""
    ids = jax.ShapeDtypeStruct((2, 256), jnp.int32)
    run = functools.partial(by_shards, functools.partial(forward_and_backward, causal=False))
    program = compile_for_h200(run, *shapes(256, 64, batch=2), ids, ids)
    assert names(program) == KERNELS

"""Compiles the Hopper kernels of slot attention with the real compiler, without a GPU."""

import functools

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import native_hybrid_attention, slot_attention
from pallas_kernels.hardware.gpu import compile_for_h200
from tests.pallas_kernels.kit.compiled import (
    assert_compiled_well,
    by_shards,
    names,
    queries_and_keys,
    with_gradients,
)

HEADS = (0, 1, 1, 1)
KERNELS = ("totals", "states", "outputs", "errors", "written", "gates")


def shapes(length: int, head_dim: int):
    queries, keys, values = queries_and_keys(HEADS, length, head_dim)
    return queries, keys, values, jax.ShapeDtypeStruct((*keys.shape[:3], 64), jnp.float32)


def forward(*arrays):
    settings = dict(shift=32, kv_head_of_query=HEADS, implementation="gpu")
    out_BTNH, lse_BTN, state = slot_attention(*arrays, **settings)
    return out_BTNH, lse_BTN, *state[:2]


def native_hybrid(q_BTNH, k_BTKH, v_BTKH, log_forget_BTKM, *rotated):
    settings = dict(window=32, kv_head_of_query=HEADS)
    found = native_hybrid_attention(
        q_BTNH, k_BTKH, v_BTKH, log_forget_BTKM, rotated=rotated, **settings
    )
    return found.out_BTNH, found.lse_BTN


def compiled(run, *arrays):
    """Compiles forward and backward under `jax.shard_map`, as training runs them."""
    both = functools.partial(with_gradients, run)
    return compile_for_h200(functools.partial(by_shards, both), *arrays)


@pytest.mark.gpu_compiler
def test_forward_compiles_without_spills():
    program = compile_for_h200(functools.partial(by_shards, forward), *shapes(8192, 128))
    assert names(program) == {f"slot_attention_{x}" for x in KERNELS[:3]}
    assert_compiled_well(program)


@pytest.mark.heavy
@pytest.mark.gpu_compiler
def test_forward_and_backward_compile_without_spills():
    program = compiled(forward, *shapes(8192, 128))
    assert names(program) == {f"slot_attention_{x}" for x in KERNELS}
    assert_compiled_well(program)


@pytest.mark.heavy
@pytest.mark.gpu_compiler
@pytest.mark.parametrize("length", [8192, 32768])
def test_native_hybrid_attention_compiles_without_spills(length):
    """Queries and keys of the window are rotated, so that it and the slots have their own."""
    arrays = shapes(length, 128)
    program = compiled(native_hybrid, *arrays, *arrays[:2])
    window = {f"attention_{x}" for x in ("forward", "dq", "dkv")}
    assert names(program) == {f"slot_attention_{x}" for x in KERNELS} | window
    assert_compiled_well(program)

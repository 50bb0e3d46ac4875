"""Compiles the Hopper kernel over an encoded cache with the real compiler, for an H200."""

import functools

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import PackedKV, attention_decode
from pallas_kernels.hardware.gpu import compile_for_h200
from tests.pallas_kernels.kit.compiled import assert_compiled_well, by_shards, names

HEADS = (0, 2, 2, 3)
READERS = [HEADS, (0,) * 16, (0,) * 32]
heavy = functools.partial(pytest.param, marks=pytest.mark.heavy)


def decode(heads, q, cache, lengths, *ids):
    segments = dict(zip(("segment_ids_B", "kv_segment_ids_BS"), ids, strict=False))
    settings = dict(kv_head_of_query=heads, return_lse=True, implementation="gpu")
    return attention_decode(q, lengths_B=lengths, cache=cache, **segments, **settings)


def shapes(heads, head_dim: int, slots: int = 32768, batch: int = 2):
    cache = functools.partial(
        PackedKV.empty, "ultraquant", batch, slots, max(heads) + 1, head_dim, jnp.bfloat16
    )
    ids = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((batch,), (batch, slots)))
    q = jax.ShapeDtypeStruct((batch, len(heads), head_dim), jnp.bfloat16)
    return q, jax.eval_shape(cache), jax.ShapeDtypeStruct((batch,), jnp.int32), *ids


@pytest.mark.gpu_compiler
@pytest.mark.parametrize(
    ("head_dim", "heads"),
    [
        (64, HEADS),
        *(heavy(H, heads) for H in (128, 256) for heads in (HEADS, (0,) * 16, (0,) * 32)),
    ],
)
def test_compiles_without_spills(head_dim, heads):
    fn = functools.partial(decode, heads)
    program = compile_for_h200(fn, *shapes(heads, head_dim))
    assert names(program) == {"attention_decode_packed"}
    assert_compiled_well(program)


@pytest.mark.heavy
@pytest.mark.gpu_compiler
def test_compiles_under_shard_map():
    run = functools.partial(by_shards, functools.partial(decode, HEADS))
    program = compile_for_h200(run, *shapes(HEADS, 64, slots=512))
    assert names(program) == {"attention_decode_packed"}

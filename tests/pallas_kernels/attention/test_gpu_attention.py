"""Runs the Hopper attention kernels in the Mosaic GPU interpreter, against float64.

Shared memory and results start out as NaN there, and two accesses that may meet raise.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import attention, attention_decode
from pallas_kernels.attention.gpu.blocks import (
    MULTIPROCESSORS,
    HopperBlocks,
    HopperDecodeBlocks,
    Ring,
    choose_decode_blocks,
)
from pallas_kernels.hopper.machine import OLDEST_JAX
from tests.pallas_kernels.attention.cases import CASES, Case, make_inputs, wide
from tests.pallas_kernels.attention.oracle import float64_results
from tests.pallas_kernels.attention.suite import ATTENTION, run_case
from tests.pallas_kernels.attention.test_decode import LENGTHS, decode
from tests.pallas_kernels.kit.cases import in_dtype, some_heavy

HEAD = dict(kv_heads=1, kv_head_of_query=(0,))
TRIED = [
    *(Case(name=f"T={length}", length=length, **HEAD) for length in (1, 127, 128)),
    Case(name="T=129, heads of 128", length=129, head_dim=128, **HEAD),
    Case(name="T=130, heads of 256", length=130, head_dim=256, **HEAD),
    Case(name="T=300", length=300, kv_head_of_query=(1, 0, 1)),
    Case(name="T=300, packed", length=300, segments="packed", window=130, **HEAD),
    *(
        case if "heads" in case.name else dataclasses.replace(case, **HEAD)
        for case in CASES
        if case.name
        in (
            "start in the middle, traced",
            "start before the keys, traced",
            "all before the keys, traced",
            "start after the keys, traced",
            "not causal, T != S",
            "window 1",
            "window 64",
            "heads (0, 0, 0)",
            "heads (0, 2, 2, 3), one unread",
            "mixed",
            "strangers",
            "logits +-1e4",
            "logits near -1e4",
            "scale -0.3",
            "scale 0.0",
        )
    ),
]
HEAVY = {  # each is nearly one of the others
    "T=127",
    "T=128",
    "not causal, T != S",
    "window 1",
    "start before the keys, traced",
    "start after the keys, traced",
    "heads (0, 0, 0)",
    "scale 0.0",
}
DECODED = [
    Case(name="decode", kv_heads=4, kv_head_of_query=(0, 2, 2, 3)),
    Case(name="decode, window 70", window=70, head_dim=128),
    Case(name="decode, packed", segments="packed", head_dim=256),
    Case(name="decode, many readers", kv_heads=1, kv_head_of_query=(0,) * 65),
    Case(name="decode near -1e4", logits="all near -1e4", scale=0.125),
]
SHARED = HopperDecodeBlocks(block=64, stages=2, shares=3)

interpreter = pytest.mark.interpreter("gpu")


def in_kernel_shape(case: Case) -> Case:
    return in_dtype(wide(case, max(case.head_dim, 64)), "bfloat16")


def races():
    import jax.experimental.pallas.mosaic_gpu as plgpu

    return plgpu.InterpretGPUParams(detect_races=True)


def run(case: Case):
    return run_case("gpu", case, races())


@interpreter
@pytest.mark.parametrize(
    "case",
    some_heavy([*map(in_kernel_shape, TRIED)], lambda case: case.name in HEAVY),
    ids=lambda case: case.name,
)
def test_equals_float64(case):
    ATTENTION.check(run(case), case)


@interpreter
@pytest.mark.parametrize("tile_dkv", [64, 128])
def test_the_blocks_do_not_matter(tile_dkv):
    """Shared memory holds as few blocks as the kernels can do with."""
    case = in_kernel_shape(Case(name="T=300", length=300, segments="mixed", **HEAD))
    blocks = HopperBlocks(
        forward=Ring(block=192 - tile_dkv, stages=1, value_stages=2),
        dq=Ring(block=64, stages=3, value_stages=1),
        dkv=Ring(block=64, stages=2, value_stages=1),
        tile_dkv=tile_dkv,
    )
    ATTENTION.check(run_case("gpu", case, races(), blocks=blocks), case)


@interpreter
def test_vmap_over_starts_changes_nothing():
    """The starts are mapped; keys and values are shared."""
    case = in_kernel_shape(dataclasses.replace(TRIED[1], name="vmap", keys=160, traced=True))
    inputs, starts = make_inputs(case), (20, -50)
    of_one = lambda start: run(case)(*inputs[:3], start, None, None)[0]
    found = jax.jit(jax.vmap(of_one))(jnp.array(starts))
    for out, start in zip(found, starts, strict=True):
        np.testing.assert_array_equal(out, jax.jit(of_one)(jnp.int32(start)))


@interpreter
@pytest.mark.parametrize("case", [*map(in_kernel_shape, DECODED)], ids=lambda case: case.name)
def test_decode_equals_float64(case):
    case = dataclasses.replace(case, length=1, keys=300, batch=len(LENGTHS))
    inputs = make_inputs(case)._replace(q_start=jnp.array(LENGTHS, jnp.int32) - 1)
    if case.segments != "none":
        last_B1 = jnp.maximum(inputs.q_start, 0)[:, None]
        ids_B1 = jnp.take_along_axis(inputs.kv_segment_ids_BS, last_B1, axis=1)
        inputs = inputs._replace(segment_ids_BT=ids_B1)
    results = ATTENTION.with_gradients(decode("gpu", case, races(), blocks=SHARED))(inputs)
    ATTENTION.assert_results(results, float64_results(inputs, case), case.dtype)


def test_shares_busy_a_gpu_and_write_little():
    few = choose_decode_blocks(128, readers=4, keys=32768, programs=8)
    assert 0.9 * MULTIPROCESSORS <= 8 * few.shares <= MULTIPROCESSORS
    assert choose_decode_blocks(128, readers=4, keys=300, programs=8).shares == 1
    assert choose_decode_blocks(128, readers=4, keys=32768, programs=MULTIPROCESSORS).shares == 1


@interpreter
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(dtype="float32"), "q is float32; bfloat16 is accepted"),
        (dict(head_dim=96), "the head dimension of q is 96; (64, 128, 256) are accepted"),
    ],
)
def test_refuses_other_dtypes_and_sizes(changes, words):
    case = dataclasses.replace(in_kernel_shape(TRIED[0]), **changes)
    with pytest.raises(NotImplementedError) as refusal:
        run(case)(*make_inputs(case))
    assert words in str(refusal.value)


def test_refuses_other_machines_and_old_jax_in_one_sentence():
    case = in_kernel_shape(TRIED[0])
    q, k, v = make_inputs(case)[:3]
    new = jax.__version_info__ >= OLDEST_JAX
    words = "run on Hopper GPUs" if new else "need jax 0.11 or newer"
    with pytest.raises(NotImplementedError, match=words):
        attention(q, k, v, implementation="gpu")
    with pytest.raises(NotImplementedError, match=words):
        attention_decode(q[:, 0], k, v, jnp.array([1]), implementation="gpu")

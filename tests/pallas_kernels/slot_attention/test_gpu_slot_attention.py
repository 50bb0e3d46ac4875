"""Runs the Hopper kernels of slot attention in the Mosaic GPU interpreter, against float64.

Shared memory and results start out as NaN there.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.hopper.machine import OLDEST_JAX
from tests.pallas_kernels.slot_attention.cases import HOSTILE, Case, make_inputs
from tests.pallas_kernels.slot_attention.suite import SLOT_ATTENTION, call, static
from tests.tolerances import KERNEL, error_ratio

# Three chunks. One KV head is read by three heads, which two warpgroups share, the other by none.
SIZE = dict(
    length=130, batch=1, heads=(1, 1, 1), kv_heads=2, head_dim=128, slots=30, dtype="bfloat16"
)
CASES = [
    dataclasses.replace(case, **SIZE)
    for case in HOSTILE
    if case.name in ("gate -300", "gate mixed, packed")
]
SMALL = Case(
    name="small", length=70, batch=1, head_dim=64, slots=100, segments="mixed", dtype="bfloat16"
)

interpreter = pytest.mark.interpreter("gpu")


@functools.cache
def with_races(*static):
    import jax.experimental.pallas.mosaic_gpu as plgpu

    interpret = plgpu.InterpretGPUParams(detect_races=True)
    return SLOT_ATTENTION.with_gradients(call("gpu", interpret, *static))


@interpreter
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_float64_without_races(case, monkeypatch):
    """The sweeps are cut into two segments, of two chunks and one."""
    from pallas_kernels.slot_attention.gpu import sweep

    monkeypatch.setattr(sweep, "count_segments", lambda programs, chunks: 2)
    found = with_races(*static(case))(make_inputs(case))
    SLOT_ATTENTION.assert_results(found, SLOT_ATTENTION.expected(case), case.dtype)


@interpreter
def test_vmap_heads_of_64_and_more_than_64_slots_are_right():
    inputs, exact = make_inputs(SMALL), SLOT_ATTENTION.expected(SMALL)
    run = lambda q: call("gpu", True, *static(SMALL))(q, *inputs[1:])
    nothing = jnp.zeros_like(inputs.q_BTNH)
    out, lse, k_slots, v_slots = jax.jit(jax.vmap(run))(jnp.stack([nothing, inputs.q_BTNH]))
    least = KERNEL["bfloat16"].forward
    for found, wanted in ((out, exact.out), (k_slots, exact.k_slots), (v_slots, exact.v_slots)):
        assert error_ratio(found[1], wanted) < least
    seen_BTN = jnp.isfinite(exact.lse)
    assert jnp.array_equal(jnp.isfinite(lse[1]), seen_BTN)
    assert jnp.allclose(lse[0][seen_BTN], jnp.log(SMALL.slots))


@pytest.mark.parametrize(
    ("programs", "chunks", "segments"),
    [(64, 512, 5), (4, 512, 64), (4, 16, 2), (4, 7, 1), (4096, 512, 1), (1, 100, 12)],
)
def test_few_heads_are_swept_in_segments(programs, chunks, segments):
    from pallas_kernels.slot_attention.gpu.segments import count_segments

    assert count_segments(programs, chunks) == segments


@interpreter
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(dtype="float32"), "q is float32; bfloat16 is accepted"),
        (dict(head_dim=96), r"the head dimension is 96; \(64, 128\) are accepted"),
        (dict(slots=129), "there are 129 slots; up to 128 are accepted"),
    ],
)
def test_refuses_other_dtypes_and_sizes(changes, words):
    case = dataclasses.replace(SMALL, length=4, **changes)
    with pytest.raises(NotImplementedError, match=words):
        call("gpu", True, *static(case))(*make_inputs(case))


def test_refuses_other_machines_and_old_jax_in_one_sentence():
    case = dataclasses.replace(SMALL, length=4)
    new = jax.__version_info__ >= OLDEST_JAX
    words = "run on Hopper GPUs" if new else "need jax 0.11 or newer"
    with pytest.raises(NotImplementedError, match=words):
        call("gpu", False, *static(case))(*make_inputs(case))

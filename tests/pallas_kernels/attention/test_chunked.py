"""Checks the chunked form's own promises: float64, any block, skipped blocks, linear memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import attention
from pallas_kernels.attention.chunked import ChunkedBlocks, choose_block
from pallas_kernels.attention.chunked_blocks import make_places
from pallas_kernels.attention.visibility import Segments, Visibility
from tests.pallas_kernels.attention.cases import CASES, Case, make_inputs
from tests.pallas_kernels.attention.oracle import Results, cotangents, visible
from tests.pallas_kernels.attention.suite import ATTENTION, run_case
from tests.tolerances import error_ratio

BLOCKED = [
    Case(name="packed, window 64", segments="packed", window=64),
    Case(name="mixed", segments="mixed"),
    Case(name="not causal, mixed", segments="mixed", causal=False),
    Case(name="before the keys", length=70, keys=160, q_start=-30, traced=True),
    Case(name="after the keys", length=70, keys=160, q_start=150, window=64),
    Case(name="one group of 1, one of 3", kv_heads=4, kv_head_of_query=(2, 0, 2, 2)),
    Case(name="near -1e4", logits="all near -1e4", scale=0.125),
]


@pytest.mark.parametrize("case", BLOCKED, ids=lambda case: case.name)
def test_the_block_does_not_matter(case):
    """The blocks do not divide the lengths."""
    run = run_case("chunked", case, blocks=ChunkedBlocks(length=48))
    ATTENTION.check(run, case)


@pytest.mark.parametrize("name", ["mixed", "window 64, packed", "heads (0, 2, 2, 3), one unread"])
def test_float64_stays_float64(name):
    """The oracle is another program, so this also checks the algebra to 1e-12."""
    case = next(case for case in CASES if case.name == name)
    inputs, run = make_inputs(case), run_case("chunked", case)
    with jax.enable_x64(True):
        double = lambda x: jnp.asarray(np.asarray(x), jnp.float64)
        arrays, bars = (tuple(map(double, x)) for x in (inputs[:3], cotangents(inputs)))
        outputs, pull = jax.vjp(lambda *x: run(*x, *inputs[3:]), *arrays)
        results = Results(*map(np.asarray, (*outputs, *pull(bars))))
    exact = ATTENTION.expected(case)
    for field in ("out", "dq", "dk", "dv"):
        assert getattr(results, field).dtype == np.float64, field
        assert error_ratio(getattr(results, field), getattr(exact, field)) < 1e-12, field
    assert results.lse.dtype == np.float64
    seen_BTN = np.isfinite(exact.lse)
    assert error_ratio(results.lse[seen_BTN], exact.lse[seen_BTN]) < 1e-12


@pytest.mark.parametrize("case", BLOCKED[:5], ids=lambda case: case.name)
def test_only_blocks_between_the_first_and_the_last_that_are_seen_are_visited(case):
    inputs, C = make_inputs(case), 16
    ids = inputs[4:]
    places = make_places(
        Visibility(causal=case.causal, window=case.window),
        case.length,
        case.S,
        jnp.int32(case.q_start),
        None if ids[0] is None else Segments(*ids),
        block=C,
    )
    seen_TS = np.any([visible(inputs, case, row) for row in range(case.batch)], axis=0)
    for z, (first, stop) in enumerate(zip(places.first_Z, places.stop_Z, strict=True)):
        seen_S = np.flatnonzero(seen_TS[z * C : (z + 1) * C].any(axis=0))
        if len(seen_S):
            assert (first, stop) == (seen_S[0] // C, seen_S[-1] // C + 1)
        else:
            assert stop <= first + 1


def test_only_arguments_output_and_two_numbers_a_softmax_are_kept_for_the_backward():
    """No score is saved, and no KV head twice."""
    case = Case(name="kept", kv_head_of_query=(0, 0, 0, 1), segments="packed")
    inputs, run = make_inputs(case), run_case("chunked", case)
    pull = jax.eval_shape(lambda *x: jax.vjp(lambda *y: run(*y, *inputs[3:]), *x)[1], *inputs[:3])
    kept = sorted(x.shape for x in jax.tree.leaves(pull) if x.dtype == jnp.float32)
    q, k, v = (x.shape for x in inputs[:3])
    assert kept == sorted([q, k, v, q, q[:3], q[:3]])


def test_memory_is_linear_in_the_length():
    def temporaries(T: int) -> int:
        shapes = [jax.ShapeDtypeStruct((1, T, N, 16), jnp.float32) for N in (3, 2, 2)]
        loss = lambda *x: jnp.sum(
            attention(*x, kv_head_of_query=(0, 1, 1), implementation="chunked")
        )
        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, long = temporaries(4096), temporaries(16384)
    assert long < 4 * short
    assert long < 16384**2  # bytes: far less than one head's scores


@pytest.mark.parametrize(("rows", "block"), [(1, 512), (4, 512), (16, 256), (64, 128), (1000, 128)])
def test_blocks_fit_a_cache(rows, block):
    assert choose_block(rows) == block


def test_rematerialisation_can_keep_the_output():
    """With the policy, the backward pass does not run the forward pass again."""
    case = Case(name="kept", length=40)
    inputs, run = make_inputs(case), run_case("chunked", case)
    policy = jax.checkpoint_policies.save_only_these_names("attention_out", "attention_lse")

    def exponentials(policy) -> int:
        layer = jax.checkpoint(lambda *x: run(*x, *inputs[3:])[0], policy=policy)
        gradient = jax.make_jaxpr(jax.grad(lambda *x: jnp.sum(layer(*x)), (0, 1, 2)))(*inputs[:3])
        return str(gradient).count(" exp ")

    assert exponentials(policy) < exponentials(None)

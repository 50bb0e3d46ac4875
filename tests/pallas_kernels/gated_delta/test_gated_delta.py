"""Compares every implementation of the gated delta rule with float64, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from pallas_kernels import gated_delta, gated_delta_step
from tests.pallas_kernels.gated_delta.cases import (
    FORMS,
    SEGMENTS,
    Case,
    Inputs,
    in_dtype,
    make_inputs,
    wide,
)
from tests.pallas_kernels.gated_delta.implementations import IMPLEMENTATIONS, assert_results, names
from tests.pallas_kernels.gated_delta.oracle import float64_results
from tests.tolerances import KERNEL, error_ratio

SMOKE = "1 head, H=128"  # runs a kernel with every version of jax
EVERY = [
    pytest.param(name, case, marks=() if case.name == SMOKE else x.marks)
    for name, x in IMPLEMENTATIONS.items()
    for case in x.cases
]


def in_shape_of(name: str, case: Case) -> Case:
    """Returns the case in a shape that the implementation takes and other tests have compiled."""
    implementation = IMPLEMENTATIONS[name]
    if implementation.is_kernel:
        case = wide(case, implementation.head_dims[0])
    return in_dtype(case, implementation.dtypes[0])


@pytest.mark.parametrize(
    ("name", "case"), EVERY, ids=lambda x: x if isinstance(x, str) else f"{x.name}, {x.dtype}"
)
def test_results_and_gradients_equal_float64(name, case):
    results = IMPLEMENTATIONS[name](case)
    assert_results(results, case)
    assert results.out.dtype == results.dq.dtype == results.dk.dtype == jnp.dtype(case.dtype)
    assert results.state.dtype == results.dlog_decay.dtype == results.dstate.dtype == np.float32


def test_memory_that_a_kernel_leaves_unwritten_reads_as_nan():
    """The TPU interpreter does so by default; the cases above rely on it to find such memory."""

    def half(out_ref):
        out_ref[0] = jnp.zeros_like(out_ref[0])

    interpret = IMPLEMENTATIONS["tpu"].interpret()
    assert interpret.detect_races
    shape = jax.ShapeDtypeStruct((2, 8, 128), jnp.float32)
    written = pl.pallas_call(half, out_shape=shape, interpret=interpret)()
    assert np.all(written[0] == 0) and np.all(np.isnan(written[1]))


@names
@pytest.mark.parametrize("case", SEGMENTS, ids=lambda case: case.name)
def test_padding_reads_and_writes_nothing(name, case):
    """Values on padding do not change the results, and their gradients are zero.

    In plain JAX the results stay the same bit for bit.
    """
    case = in_shape_of(name, case)
    inputs = make_inputs(case)
    padding_BT = np.asarray(inputs.segment_ids_BT) == 0
    dirty = [
        jnp.where(padding_BT.reshape(padding_BT.shape + (1,) * (x.ndim - 2)), 3.0, x)
        for x in inputs[:5]
    ]
    clean = IMPLEMENTATIONS[name](case)
    results = IMPLEMENTATIONS[name].run(
        inputs._replace(**dict(zip(inputs._fields, dirty, strict=False)))
    )
    trace = IMPLEMENTATIONS[name].padding_trace
    for actual, wanted in zip(results, clean, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=trace)
    assert not np.any(clean.out[padding_BT])
    for gradient in (clean.dq, clean.dk, clean.dv, clean.dlog_decay, clean.dbeta):
        assert np.all(np.abs(gradient[padding_BT]) <= trace)


def packed_case(name: str) -> Case:
    return in_shape_of(name, next(case for case in FORMS if case.name == "packed"))


@names
def test_packed_documents_equal_separate_documents(name):
    """Separate documents lie at the start of a row; only the first has the initial state."""
    packed, inputs = IMPLEMENTATIONS[name](packed_case(name)), make_inputs(packed_case(name))
    limit = 1e-6 if packed.out.dtype == np.float32 else KERNEL["bfloat16"].forward
    ids_BT = np.asarray(inputs.segment_ids_BT)
    for segment in (1, 2, 3):
        start_B1 = np.argmax(ids_BT == segment, axis=1)[:, None]
        columns_BT = (start_B1 + np.arange(ids_BT.shape[1])) % ids_BT.shape[1]
        rows_B1 = np.arange(len(ids_BT))[:, None]
        turned_ids_BT = ids_BT[rows_B1, columns_BT]
        alone_ids_BT = np.where(turned_ids_BT == segment, 1, 0).astype(np.int32)
        alone = IMPLEMENTATIONS[name].run(
            Inputs(
                *(np.asarray(x)[rows_B1, columns_BT] for x in inputs[:5]),
                inputs.state_BNHP * (segment == 1),
                alone_ids_BT,
            )
        )
        wanted = packed.out[rows_B1, columns_BT] * (alone_ids_BT == 1)[..., None, None]
        assert error_ratio(alone.out, wanted) < limit
    assert error_ratio(alone.state, packed.state) < limit


@names
def test_an_initial_state_belongs_to_the_first_document_only(name):
    results, inputs = IMPLEMENTATIONS[name](packed_case(name)), make_inputs(packed_case(name))
    other = IMPLEMENTATIONS[name].run(inputs._replace(state_BNHP=inputs.state_BNHP * 2))
    changed_BT = np.any(results.out != other.out, axis=(2, 3))
    assert not np.any(changed_BT & np.asarray(inputs.segment_ids_BT != 1))
    assert np.all(changed_BT[:, :16])  # later tokens may forget it


@pytest.mark.parametrize("name", ["chunked", "reference"])
def test_a_state_handed_over_at_any_point_equals_one_pass(name):
    """The other part is padding, so that every split shares one compiled function."""
    inputs = make_inputs(Case(name="split", length=40, segments="middle padding"))

    @jax.jit
    def two_passes(split):
        before_T = jnp.arange(40) < split
        run = lambda state, mask_T: gated_delta(
            *inputs[:5],
            initial_state_BNHP=state,
            segment_ids_BT=jnp.where(mask_T, inputs.segment_ids_BT, 0),
            implementation=name,
        )
        first_BTNP, state = run(inputs.state_BNHP, before_T)
        second_BTNP, state = run(state, ~before_T)
        return first_BTNP + second_BTNP, state

    exact = float64_results(inputs)
    for split in range(41):
        out_BTNP, state = two_passes(split)
        assert error_ratio(out_BTNP, exact.out) < 1e-6
        assert error_ratio(state, exact.state) < 1e-6


def test_steps_equal_a_sequence():
    inputs = make_inputs(Case(name="steps", length=40))
    step = jax.jit(gated_delta_step)
    state, outputs = inputs.state_BNHP, []
    for t in range(40):
        out, state = step(*(x[:, t] for x in inputs[:5]), state)
        outputs.append(out)
    exact = float64_results(inputs)
    assert error_ratio(jnp.stack(outputs, axis=1), exact.out) < 1e-6
    assert error_ratio(state, exact.state) < 1e-6

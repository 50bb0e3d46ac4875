"""Compares every implementation of softmax attention with float64, forward and backward."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.pallas_kernels.attention.cases import (
    FORMS,
    SEGMENTS,
    STARTS,
    Case,
    in_dtype,
    make_inputs,
    wide,
)
from tests.pallas_kernels.attention.implementations import (
    IMPLEMENTATIONS,
    assert_results,
    bounds,
    expected,
    names,
)
from tests.tolerances import error_ratio

SMOKE = "T=1, H=128"  # runs a kernel with every version of jax
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


def form(name: str, form_name: str) -> Case:
    return in_shape_of(name, next(case for case in FORMS if case.name == form_name))


@pytest.mark.parametrize(
    ("name", "case"), EVERY, ids=lambda x: x if isinstance(x, str) else f"{x.name}, {x.dtype}"
)
def test_results_and_gradients_equal_float64(name, case):
    results = IMPLEMENTATIONS[name](case)
    assert_results(results, expected(case), case.dtype)
    dtypes = {x.dtype for x in (results.out, results.dq, results.dk, results.dv)}
    assert dtypes == {jnp.dtype(case.dtype)} and results.lse.dtype == np.float32


@names
@pytest.mark.parametrize("case", SEGMENTS, ids=lambda case: case.name)
def test_padding_reads_and_writes_nothing(name, case):
    """Values on padding change no bit of the results, and gradients there are 0."""
    case = in_shape_of(name, case)
    inputs = make_inputs(case)
    padding = np.asarray(inputs.segment_ids_BT) == 0, np.asarray(inputs.kv_segment_ids_BS) == 0
    queries_BT11, keys_BS11 = (jnp.asarray(x)[..., None, None] for x in padding)
    dirty = inputs._replace(
        q_BTNH=jnp.where(queries_BT11, 30.0, inputs.q_BTNH),
        k_BSKH=jnp.where(keys_BS11, 30.0, inputs.k_BSKH),
        v_BSKH=jnp.where(keys_BS11, 30.0, inputs.v_BSKH),
    )
    clean = IMPLEMENTATIONS[name](case)
    for actual, wanted in zip(IMPLEMENTATIONS[name].run(dirty, case), clean, strict=True):
        np.testing.assert_array_equal(actual, wanted)
    assert not np.any(clean.out[padding[0]]) and not np.any(clean.dq[padding[0]])
    assert np.all(np.isneginf(clean.lse[padding[0]]))
    assert not np.any(clean.dk[padding[1]]) and not np.any(clean.dv[padding[1]])


@names
def test_packed_documents_equal_separate_documents(name):
    """The separate documents each lie at the start of a row."""
    case = form(name, "packed")
    packed, inputs = IMPLEMENTATIONS[name](case), make_inputs(case)
    limits = bounds(case.dtype)
    ids_BT = np.asarray(inputs.segment_ids_BT)
    for segment in (1, 2, 3):
        start_B1 = np.argmax(ids_BT == segment, axis=1)[:, None]
        columns_BT = (start_B1 + np.arange(ids_BT.shape[1])) % ids_BT.shape[1]
        turn = lambda x, columns_BT=columns_BT: np.asarray(x)[
            np.arange(len(x))[:, None], columns_BT
        ]
        own_BT = turn(ids_BT) == segment
        alone_ids_BT = jnp.asarray(own_BT, jnp.int32)
        alone = IMPLEMENTATIONS[name].run(
            inputs._replace(
                q_BTNH=jnp.asarray(turn(inputs.q_BTNH)),
                k_BSKH=jnp.asarray(turn(inputs.k_BSKH)),
                v_BSKH=jnp.asarray(turn(inputs.v_BSKH)),
                segment_ids_BT=alone_ids_BT,
                kv_segment_ids_BS=alone_ids_BT,
            ),
            case,
        )
        for field in ("out", "lse"):
            found, wanted = getattr(alone, field)[own_BT], turn(getattr(packed, field))[own_BT]
            assert error_ratio(found, wanted) < limits[field]


def chunk_case(name: str, **settings) -> Case:
    """Makes 70 queries at a traced position among 160 keys, as in the cases of `STARTS`."""
    case = Case(name="chunks", traced=True, length=STARTS[0].length, keys=160, **settings)
    return in_shape_of(name, case)


@names
def test_chunks_of_the_queries_equal_the_whole(name):
    """The start q_start is traced, and the last chunk goes beyond the end."""
    chunk = chunk_case(name)
    whole = in_shape_of(name, Case(name="chunks"))
    inputs, wanted = make_inputs(whole), IMPLEMENTATIONS[name](whole)
    limits = bounds(whole.dtype)
    pad = lambda x: jnp.pad(x, ((0, 0), (0, chunk.length), (0, 0), (0, 0)))
    parts = []
    for start in range(0, whole.length, chunk.length):
        q_BTNH = pad(inputs.q_BTNH)[:, start : start + chunk.length]
        of_chunk = inputs._replace(q_BTNH=q_BTNH, q_start=jnp.int32(start))
        parts.append(IMPLEMENTATIONS[name].run(of_chunk, chunk))
    for field in ("out", "lse"):
        joined = np.concatenate([getattr(part, field) for part in parts], axis=1)
        joined = joined[:, : whole.length]
        assert error_ratio(joined, getattr(wanted, field)) < limits[field]


@names
def test_the_future_gets_no_gradient(name):
    """Keys before a window and behind the last query get gradients of exactly zero."""
    case = chunk_case(name, window=64, q_start=70)
    results = IMPLEMENTATIONS[name](case)
    first, stop = case.q_start - case.window + 1, case.q_start + case.length
    for gradient in (results.dk, results.dv):
        assert not np.any(gradient[:, :first]) and not np.any(gradient[:, stop:])
        assert np.all(np.any(gradient[:, first:stop], axis=(0, 2, 3)))

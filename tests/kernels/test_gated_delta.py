"""Every implementation of the gated delta rule against float64, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import gated_delta, gated_delta_step
from tests.kernels.cases import (
    BFLOAT16,
    CASES,
    HOSTILE,
    SEGMENTS,
    SHAPES,
    Case,
    Inputs,
    make_inputs,
)
from tests.kernels.implementations import expected, implementation
from tests.kernels.oracle import Results, cotangents, float64_results
from tests.tolerances import KERNEL, cosine, error_ratio

REFERENCE_CASES = [SHAPES[0], *SEGMENTS, *HOSTILE, *BFLOAT16[1:]]
GRADIENTS = Results._fields[2:]


def assert_results(actual: Results, case: Case) -> None:
    limits, exact = KERNEL[case.dtype], expected(case)
    bounds = dict.fromkeys(("out", "state"), limits.forward)
    bounds |= dict.fromkeys(("dq", "dk", "dv", "dstate"), limits.gradient)
    bounds |= dict.fromkeys(("dlog_decay", "dbeta"), limits.gate_gradient)
    ratios = {name: error_ratio(getattr(actual, name), getattr(exact, name)) for name in bounds}
    assert not {name: ratio for name, ratio in ratios.items() if not ratio <= bounds[name]}
    for name in ("dlog_decay", "dbeta"):
        assert cosine(getattr(actual, name), getattr(exact, name)) >= limits.gate_cosine


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_chunked_equals_float64(case):
    assert_results(implementation("chunked")(make_inputs(case)), case)


@pytest.mark.parametrize("case", REFERENCE_CASES, ids=lambda case: case.name)
def test_reference_equals_float64(case):
    assert_results(implementation("reference")(make_inputs(case)), case)


@pytest.mark.parametrize("case", BFLOAT16, ids=lambda case: case.name)
def test_output_has_the_dtype_of_the_values_and_the_state_is_float32(case):
    results = implementation("chunked")(make_inputs(case))
    assert results.out.dtype == jnp.bfloat16
    assert results.state.dtype == results.dlog_decay.dtype == np.float32


@pytest.mark.parametrize("case", SEGMENTS, ids=lambda case: case.name)
def test_padding_reads_and_writes_nothing(case):
    """Whatever stands on padding, the results stay the same bit for bit and gradients are zero."""
    inputs = make_inputs(case)
    padding_BT = np.asarray(inputs.segment_ids_BT) == 0
    dirty = [
        jnp.where(padding_BT.reshape(padding_BT.shape + (1,) * (x.ndim - 2)), 3.0, x)
        for x in inputs[:5]
    ]
    clean = implementation("chunked")(inputs)
    results = implementation("chunked")(
        inputs._replace(**dict(zip(inputs._fields, dirty, strict=False)))
    )
    for name, actual in results._asdict().items():
        np.testing.assert_array_equal(actual, getattr(clean, name), err_msg=name)
    for gradient in (clean.dq, clean.dk, clean.dv, clean.dlog_decay, clean.dbeta, clean.out):
        assert not np.any(gradient[padding_BT])


def test_packed_documents_equal_separate_documents():
    """Each document alone at the start of its row; the first has the initial state, others none."""
    inputs = make_inputs(next(case for case in SEGMENTS if case.name == "packed"))
    run, ids_BT = implementation("chunked"), np.asarray(inputs.segment_ids_BT)
    packed = run(inputs)
    for segment in (1, 2, 3):
        start_B1 = np.argmax(ids_BT == segment, axis=1)[:, None]
        columns_BT = (start_B1 + np.arange(ids_BT.shape[1])) % ids_BT.shape[1]
        rows_B1 = np.arange(len(ids_BT))[:, None]
        turned_ids_BT = ids_BT[rows_B1, columns_BT]
        alone_ids_BT = np.where(turned_ids_BT == segment, 1, 0).astype(np.int32)
        alone = run(
            Inputs(
                *(np.asarray(x)[rows_B1, columns_BT] for x in inputs[:5]),
                inputs.state_BNHP * (segment == 1),
                alone_ids_BT,
            )
        )
        wanted = packed.out[rows_B1, columns_BT] * (alone_ids_BT == 1)[..., None, None]
        assert error_ratio(alone.out, wanted) < 1e-6
    assert error_ratio(alone.state, packed.state) < 1e-6


def test_an_initial_state_belongs_to_the_first_document_only():
    inputs = make_inputs(next(case for case in SEGMENTS if case.name == "packed"))
    run = implementation("chunked")
    other = run(inputs._replace(state_BNHP=inputs.state_BNHP * 2))
    changed_BT = np.any(run(inputs).out != other.out, axis=(2, 3))
    np.testing.assert_array_equal(changed_BT, np.asarray(inputs.segment_ids_BT) == 1)


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


def test_vmap_and_rematerialisation_change_nothing():
    case = Case(name="transformed", length=40)
    inputs = make_inputs(case)
    out_bar, state_bar = cotangents(inputs)

    @jax.checkpoint
    def loss(*arrays):
        out, state = gated_delta(*arrays[:5], initial_state_BNHP=arrays[5])
        return jnp.sum(out * out_bar) + jnp.sum(state * state_bar)

    scales = jnp.array([1.0, 0.5])
    stacked = [inputs[0] * scales[:, None, None, None, None], *inputs[1:6]]
    gradients = jax.jit(jax.vmap(jax.grad(loss, argnums=range(6)), in_axes=(0,) + (None,) * 5))
    found = gradients(*stacked)
    assert_results(
        expected(case)._replace(**dict(zip(GRADIENTS, (x[0] for x in found), strict=True))), case
    )
    assert error_ratio(found[0][1], expected(case).dq) < KERNEL["float32"].gradient


def test_every_product_asks_for_full_float32():
    """Also in the backward pass; GPUs and TPUs round the factors otherwise."""
    inputs = make_inputs(Case(name="precision"))
    loss = lambda *x: sum(jnp.sum(y) for y in gated_delta(*x))
    gradient = jax.make_jaxpr(jax.grad(loss, argnums=range(5)))(*inputs[:5])
    precisions = [eqn.params["precision"] for eqn in _equations(gradient.jaxpr, "dot_general")]
    assert len(precisions) > 20
    assert all(p is not None and set(p) == {jax.lax.Precision.HIGHEST} for p in precisions)


def _equations(jaxpr, primitive: str):
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == primitive:
            yield eqn
        for value in jax.tree.leaves(
            tuple(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _equations(inner, primitive)

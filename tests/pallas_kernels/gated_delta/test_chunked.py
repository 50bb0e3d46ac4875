"""Checks the chunked form's own promises: float64, full precision everywhere, no residuals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import gated_delta
from pallas_kernels.gated_delta.chunked import ChunkedBlocks, gated_delta_chunked
from pallas_kernels.gated_delta.problem import problem_of
from tests.pallas_kernels.gated_delta.cases import FORMS, Case, make_inputs
from tests.pallas_kernels.gated_delta.oracle import Results, cotangents
from tests.pallas_kernels.gated_delta.suite import GATED_DELTA, call
from tests.pallas_kernels.kit.suite import outputs_and_gradients
from tests.tolerances import error_ratio

CASE = Case(name="chunked", length=70)


@jax.jit
def float64_gradients(arrays, segment_ids_BT, bars):
    run, inputs = call("chunked", False), (*arrays, segment_ids_BT)
    return Results(*outputs_and_gradients(run, len(arrays), inputs, bars))


@pytest.mark.parametrize("name", ["mixed", "cosine 0.9, beta 2", "log-decay mixed, packed"])
def test_float64_stays_float64(name):
    """The oracle is another form of the rule, so this also checks the algebra to 1e-12."""
    case = next(case for case in FORMS if case.name == name)
    exact, inputs = GATED_DELTA.expected(case), make_inputs(case)
    with jax.enable_x64(True):
        double = lambda x: jnp.asarray(np.asarray(x), jnp.float64)
        bars = tuple(map(double, cotangents(inputs)))
        results = float64_gradients(tuple(map(double, inputs[:6])), inputs.segment_ids_BT, bars)
    for field, actual in results._asdict().items():
        assert actual.dtype == np.float64, field
        assert error_ratio(actual, getattr(exact, field)) < 1e-12, field


@pytest.mark.parametrize("chunk", [16, 64])
def test_the_chunk_does_not_matter(chunk):
    inputs = make_inputs(CASE)
    run = call("chunked", False, blocks=ChunkedBlocks(chunk=chunk))
    results, exact = GATED_DELTA.with_gradients(run)(inputs), GATED_DELTA.expected(CASE)
    for field, actual in results._asdict().items():
        assert error_ratio(actual, getattr(exact, field)) < 1e-6, field


def test_only_the_arguments_are_kept_for_the_backward():
    """Over all layers of a model, one state per chunk would cost more than all else."""
    inputs = make_inputs(CASE)[:6]
    run = functools.partial(gated_delta_chunked, problem=problem_of(*inputs[1:3]))
    pull = jax.eval_shape(lambda *x: jax.vjp(run, *x)[1], *inputs)
    kept = [x.shape for x in jax.tree.leaves(pull)]
    assert sorted(kept) == sorted(x.shape for x in inputs)


def test_every_product_asks_for_full_float32():
    """The backward pass asks too, because GPUs and TPUs round the factors otherwise."""
    inputs = make_inputs(Case(name="precision"))
    loss = lambda *x: sum(jnp.sum(y) for y in gated_delta(*x, implementation="chunked"))
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

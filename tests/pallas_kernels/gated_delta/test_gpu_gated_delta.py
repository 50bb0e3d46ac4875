"""Runs the Hopper kernels in the Mosaic GPU interpreter, against float64.

Shared memory and results start out as NaN there.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.gated_delta.gpu.step import gated_delta_step_gpu
from pallas_kernels.gated_delta.reference import gated_delta_step_reference
from pallas_kernels.hopper.machine import OLDEST_JAX
from tests.pallas_kernels.gated_delta.cases import HOSTILE, SEGMENTS, Case, make_inputs
from tests.pallas_kernels.gated_delta.suite import GATED_DELTA, call
from tests.pallas_kernels.kit.cases import some_heavy
from tests.tolerances import error_ratio

HOPPER_SIZE = dict(
    length=100, batch=1, key_heads=1, value_heads=2, key_dim=128, value_dim=128, dtype="bfloat16"
)
CASES = [
    dataclasses.replace(case, **HOPPER_SIZE)
    for case in (Case(name="random"), SEGMENTS[0], SEGMENTS[-1], *HOSTILE)
]
IN_EACH_RUN = {  # each of the others is nearly one of these
    "random",
    "mixed",
    "identical keys, beta 2",
    "cosine 0.9, beta 2",
    "log-decay -1e4",
    "log-decay mixed, packed",
}
SMALL = Case(name="small", **{**HOPPER_SIZE, "length": 65, "value_heads": 1})

interpreter = pytest.mark.interpreter("gpu")


_rule = functools.cache(lambda interpret: GATED_DELTA.with_gradients(call("gpu", interpret)))


def assert_right(case: Case, interpret=True) -> None:
    found, exact = _rule(interpret)(make_inputs(case)), GATED_DELTA.expected(case)
    GATED_DELTA.assert_results(found, exact, case.dtype)


@interpreter
@pytest.mark.parametrize(
    "case", some_heavy(CASES, lambda case: case.name not in IN_EACH_RUN), ids=lambda case: case.name
)
def test_equals_float64(case):
    assert_right(case)


@interpreter
def test_is_free_of_races():
    import jax.experimental.pallas.mosaic_gpu as plgpu

    assert_right(SMALL, plgpu.InterpretGPUParams(detect_races=True))


@interpreter
def test_heads_of_64_are_filled_up():
    case = dataclasses.replace(SMALL, name="small heads", key_dim=64, value_dim=64, length=64)
    assert_right(case)


@interpreter
def test_wide_values_are_several_heads():
    case = dataclasses.replace(SMALL, name="wide values", value_dim=192)
    assert_right(case)


@interpreter
def test_vmap_changes_nothing():
    inputs = make_inputs(SMALL)
    run = lambda q: call("gpu", True, scale=0.1)(q, *inputs[1:6])
    out, state = jax.jit(jax.vmap(run))(jnp.stack([inputs.q_BTKH, 2 * inputs.q_BTKH]))
    alone = jax.jit(run)(inputs.q_BTKH)
    assert error_ratio(out[0], alone[0]) < 1e-3
    assert error_ratio(out[1], 2 * alone[0]) < 1e-3
    assert error_ratio(state[0], alone[1]) < 1e-6


@interpreter
@pytest.mark.parametrize("size", [dict(), dict(key_dim=64, value_dim=256, dtype="float32")])
def test_step_equals_the_reference(size):
    case = Case(name="step", **{**HOPPER_SIZE, "batch": 2, "length": 2, **size})
    inputs = make_inputs(case)
    tokens = [x[:, 1] for x in inputs[:5]]
    step = functools.partial(gated_delta_step_gpu, scale=0.1, interpret=True)
    out, state = jax.jit(step)(*tokens, inputs.state_BNHP)
    exact_out, exact_state = gated_delta_step_reference(*tokens, inputs.state_BNHP, scale=0.1)
    assert out.dtype == exact_out.dtype and state.dtype == jnp.float32
    assert error_ratio(out, exact_out) < (1e-6 if out.dtype == jnp.float32 else 1e-3)
    assert error_ratio(state, exact_state) < 1e-6


@interpreter
def test_gradient_of_the_step_is_that_of_the_reference():
    inputs = make_inputs(SMALL)
    arrays = [*(x[:, 1].astype(jnp.float32) for x in inputs[:5]), inputs.state_BNHP]

    def loss(step, *arrays):
        out, state = step(*arrays, scale=0.1)
        return jnp.sum(out**2) + jnp.sum(state**2)

    gradient = lambda step: jax.jit(jax.grad(functools.partial(loss, step), argnums=range(6)))
    found = gradient(functools.partial(gated_delta_step_gpu, interpret=True))(*arrays)
    exact = gradient(gated_delta_step_reference)(*arrays)
    for actual, wanted in zip(found, exact, strict=True):
        assert error_ratio(actual, wanted) < 1e-5


@interpreter
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(dtype="float32"), "q is float32; bfloat16 is accepted"),
        (dict(key_dim=96), "the head dimension of q and k is 96; (64, 128) are accepted"),
        (dict(value_dim=96), "the head dimension of v is 96; (64, 128, 192, 256) are accepted"),
    ],
)
def test_refuses_other_dtypes_and_sizes(changes, words):
    inputs = make_inputs(dataclasses.replace(SMALL, length=4, **changes))
    with pytest.raises(NotImplementedError) as refusal:
        call("gpu", True)(*inputs[:6])
    assert words in str(refusal.value)


def test_refuses_other_machines_and_old_jax_in_one_sentence():
    inputs = make_inputs(dataclasses.replace(SMALL, length=4))
    new = jax.__version_info__ >= OLDEST_JAX
    words = "run on Hopper GPUs" if new else "need jax 0.11 or newer"
    with pytest.raises(NotImplementedError, match=words):
        call("gpu", False)(*inputs[:6])
    with pytest.raises(NotImplementedError, match=words):
        gated_delta_step_gpu(*(x[:, 0] for x in inputs[:5]), inputs.state_BNHP, scale=1.0)

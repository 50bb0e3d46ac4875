"""Checks the decode step on TPU: in the interpreter, and through the TPU compiler."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import gated_delta_step
from pallas_kernels.gated_delta.tpu.step import gated_delta_step_tpu
from pallas_kernels.hardware.tpu import compile_for_tpu
from tests.pallas_kernels.gated_delta.cases import Case, make_inputs
from tests.tolerances import KERNEL, error_ratio

CASES = [
    Case(name="H=64", key_heads=2, value_heads=4, key_dim=64, value_dim=64),
    Case(name="4 value heads a key head", key_heads=1, key_dim=128, value_dim=128),
    Case(name="a key head for several programs", key_heads=1, value_heads=32, key_dim=64),
    Case(name="bf16", batch=3, value_heads=2, key_dim=128, value_dim=256, dtype="bfloat16"),
    Case(name="log-decay mixed", log_decay="mixed", key_dim=64, value_dim=64),
    Case(name="beta 2", beta=2.0, keys="identical", key_dim=64, value_dim=64),
    Case(name="zero keys", keys="zero", key_dim=64, value_dim=64),
]
interpreter = pytest.mark.interpreter("tpu")
HBM_BYTES_A_CYCLE = {"v5e": 819 / 1.5, "v6e": 1640 / 1.75, "v5p": 2765 / 1.75}


def step_inputs(case: Case):
    """Returns the tokens of one time step, and a state."""
    if case.value_dim not in (64, 128, 256):
        case = Case(**{**case.__dict__, "value_dim": case.key_dim})
    q, k, v, log_decay, beta, state, _ = make_inputs(case)
    return *(x[:, 3] for x in (q, k, v, log_decay, beta)), state


def run(implementation: str):
    interpret = pltpu.InterpretParams(detect_races=True) if implementation == "tpu" else False
    return jax.jit(
        functools.partial(gated_delta_step, implementation=implementation, interpret=interpret)
    )


@pytest.mark.parametrize(
    "case",
    [CASES[0], *(pytest.param(case, marks=interpreter) for case in CASES[1:])],
    ids=lambda case: case.name,
)
def test_equals_the_reference(case):
    inputs = step_inputs(case)
    exact = run("reference")(*(x.astype(jnp.float32) for x in inputs))
    out, state = run("tpu")(*inputs)
    assert out.dtype == jnp.dtype(case.dtype) and state.dtype == jnp.float32
    assert error_ratio(out, exact[0]) < KERNEL[case.dtype].forward
    assert error_ratio(state, exact[1]) < 1e-6


@interpreter
def test_gradients_and_vmap_equal_the_reference():
    inputs = step_inputs(CASES[0])

    def gradients(name, interpret):
        def loss(*x):
            out, state = gated_delta_step(*x, implementation=name, interpret=interpret)
            return jnp.sum(jnp.sin(out)) + jnp.sum(jnp.cos(state))

        rows = [jnp.stack([x, 0.5 * x]) for x in inputs]
        return jax.jit(jax.vmap(jax.grad(loss, argnums=range(6))))(*rows)

    found, wanted = gradients("tpu", True), gradients("reference", False)
    for actual, exact in zip(found, wanted, strict=True):
        assert error_ratio(actual, exact) < KERNEL["float32"].forward


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (Case(name="sizes", key_dim=48, value_dim=64), r"dimension of q is 48; \(64, 128, 256\)"),
        (Case(name="sizes", key_dim=64, value_dim=80), r"dimension of v is 80; \(64, 128, 256\)"),
        (Case(name="dtypes", key_dim=64, value_dim=64, dtype="float16"), "q is float16; bfloat16"),
    ],
)
def test_what_it_cannot_take_is_told(case, message):
    q, k, v, log_decay, beta, state, _ = make_inputs(case)
    inputs = (*(x[:, 0] for x in (q, k, v, log_decay, beta)), state)
    with pytest.raises(NotImplementedError, match=message):
        gated_delta_step(*inputs, implementation="tpu", interpret=True)


def test_without_a_tpu_it_says_so():
    with pytest.raises(NotImplementedError, match="the device is cpu; the kernels run on TPU"):
        gated_delta_step(*step_inputs(CASES[0]), implementation="tpu")


def step_program(chip: str, B: int, K: int, N: int, H: int):
    shape = jax.ShapeDtypeStruct
    low, high = jnp.bfloat16, jnp.float32
    return compile_for_tpu(
        functools.partial(gated_delta_step_tpu, scale=1.0),
        shape((B, K, H), low),
        shape((B, K, H), low),
        shape((B, N, H), low),
        shape((B, N), high),
        shape((B, N), high),
        shape((B, N, H, H), high),
        chip=chip,
    )


@pytest.mark.tpu_compiler
@pytest.mark.parametrize(
    ("chip", "H", "most"),
    [("v6e", 128, 1.0), ("v6e", 64, 1.25), ("v6e", 256, 1.0), ("v5e", 128, 1.0), ("v5p", 128, 1.0)],
)
def test_the_compiled_step_waits_for_memory(chip, H, most):
    """Its schedule takes no longer than reading and writing the state.

    In the state 64 lanes are padded to 128; heads of 64 take a little longer.
    """
    B, N = 16, 32
    program = step_program(chip, B, N // 2, N, H)
    kernel = next(k for k in program.kernels if k.name.startswith("gated_delta_step"))
    state_bytes = B * N * H * max(H, 128) * 4
    assert kernel.cycles < most * 2 * state_bytes / HBM_BYTES_A_CYCLE[chip]


@pytest.mark.tpu_compiler
def test_it_compiles_for_one_row_on_tpu7x():
    assert step_program("tpu7x", 1, 1, 2, 128).cycles > 0

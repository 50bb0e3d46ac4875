"""Compares gates, query scale and fusion with their formulas, and checks their first values."""

import jax.numpy as jnp
import numpy as np
import pytest

from hydrahead_jax.ops.fusion import branch_weights, scale_normalise
from hydrahead_jax.ops.gates import log_decay, log_query_scale, output_gate, write_strength
from tests.tolerances import OP, assert_close

X_BTN = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32) * 4


def test_log_decay():
    a_log_N, bias_N = np.array([-1.0, 0.0, 2.0]), np.array([-5.0, 0.0, 1.0])
    wanted = -np.exp(a_log_N) * np.log1p(np.exp(X_BTN.astype(np.float64) + bias_N))
    narrow = [jnp.asarray(x, jnp.float32) for x in (X_BTN, a_log_N, bias_N)]
    assert_close(log_decay(*narrow), wanted, OP)
    assert log_decay(narrow[0].astype(jnp.bfloat16), *narrow[1:]).dtype == jnp.float32


@pytest.mark.parametrize(("neg_eigval", "most"), [(False, 1), (True, 2)])
def test_write_strength(neg_eigval, most):
    wanted = most / (1 + np.exp(-X_BTN.astype(np.float64)))
    assert_close(write_strength(jnp.asarray(X_BTN), neg_eigval=neg_eigval), wanted, OP)


def test_output_gate_is_exactly_one_at_zero():
    assert np.all(np.asarray(output_gate(jnp.zeros((2, 3)))) == 1)
    assert_close(output_gate(jnp.asarray(X_BTN)), 2 / (1 + np.exp(-X_BTN.astype(np.float64))), OP)


@pytest.mark.parametrize("base", [200.0, 500.0])
def test_log_query_scale(base):
    positions_BT = np.array([[0, 1, 10, 1000, 262144]])
    scale_BT = log_query_scale(jnp.asarray(positions_BT), base=base)
    assert scale_BT[0, 0] == 1
    assert_close(scale_BT, np.log(positions_BT + base) / np.log(base), OP)


def test_scale_normalise_gives_every_head_the_rms_of_its_gamma():
    heads_BTNH = X_BTN[..., None] * np.linspace(1, 2, 8)
    gamma_N = np.array([0.5, 1.0, 3.0])
    out_BTNH = scale_normalise(
        *(
            jnp.asarray(x, jnp.float32)
            for x in (heads_BTNH, np.ones(8), np.ones((2, 5, 3, 8)), gamma_N)
        ),
        eps=1e-6,
    )
    rms_BTN = np.sqrt(np.mean(np.asarray(out_BTNH) ** 2, axis=-1))
    assert_close(rms_BTN, np.broadcast_to(gamma_N, rms_BTN.shape), 1e-4)


def test_branch_weights_are_exactly_one_at_zero_and_sum_to_two():
    x_BTD, w_D2 = jnp.asarray(X_BTN), jnp.array([[1.0, -2.0], [0.5, 0.0], [0.0, 3.0]])
    assert np.all(np.asarray(branch_weights(x_BTD, jnp.zeros((3, 2)))) == 1)
    weights_BT2 = branch_weights(x_BTD, w_D2)
    assert_close(jnp.sum(weights_BT2, axis=-1), np.full((2, 5), 2.0), OP)
    ratio_BT = np.asarray(weights_BT2[..., 0] / weights_BT2[..., 1])
    assert_close(np.log(ratio_BT), X_BTN @ np.array([3.0, 0.5, -3.0]), 1e-4)

"""Checks the triangular inverse on keys that break power series."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.gated_delta.inverse import unit_lower_inverse
from tests.pallas_kernels.gated_delta.cases import Case, make_inputs

inverse = jax.jit(unit_lower_inverse)


def lower_triangle(keys: str, beta: float, size: int) -> np.ndarray:
    """Returns beta k_i k_j^T below the diagonal, [B, C, C], as the chunked rule has it."""
    case = Case(name=keys, keys=keys, length=size, key_heads=1, key_dim=64)
    k_BCH = np.asarray(make_inputs(case).k_BTKH[:, :, 0])
    return np.tril(beta * np.einsum("BCH,BDH->BCD", k_BCH, k_BCH), -1).astype(np.float32)


@pytest.mark.parametrize("size", [1, 8, 16, 32, 64, 128])
@pytest.mark.parametrize(
    ("keys", "beta"),
    [("random", 1), ("cosine 0.9", 0.9), ("cosine 0.9", 2), ("identical", 1), ("identical", 2)],
)
def test_equals_numpy_in_float64(keys, beta, size):
    lower = lower_triangle(keys, beta, size)
    exact = np.linalg.inv(np.eye(size) + lower.astype(np.float64))
    assert np.max(np.abs(exact)) < 2.5
    bound = 1e-6 if beta <= 1 else 3e-7 * size
    assert np.max(np.abs(inverse(lower) - exact)) < bound


def test_gradient_equals_the_derivative_of_the_inverse():
    """The derivative is d(A^-1) = -A^-1 dA A^-1, in a random direction, in float64."""
    rng = np.random.default_rng(0)
    lower = lower_triangle("cosine 0.9", 0.9, 32)[0]
    cotangent = rng.normal(size=(32, 32)).astype(np.float32)
    _, pull = jax.vjp(unit_lower_inverse, jnp.asarray(lower))
    (gradient,) = pull(jnp.asarray(cotangent))
    exact = np.linalg.inv(np.eye(32) + lower.astype(np.float64))
    direction = np.tril(rng.normal(size=(32, 32)), -1)
    wanted = np.sum(cotangent * (-exact @ direction @ exact))
    assert abs(np.sum(np.asarray(gradient) * direction) - wanted) < 1e-4 * abs(wanted)
    assert not np.any(np.triu(np.asarray(gradient)))


def test_sizes_that_do_not_halve_down_to_sixteen_are_refused():
    with pytest.raises(ValueError, match="a chunk of 48 is not 16 times a power of two"):
        unit_lower_inverse(jnp.zeros((48, 48)))

"""Compares the rotary embedding with Qwen3's own, and checks its defining property."""

import jax.numpy as jnp
import numpy as np
import pytest

from hydrahead_jax.ops.rope import rope
from tests.tolerances import OP, assert_close


@pytest.mark.parametrize("theta", [1e4, 1e6])
def test_equals_qwen3(theta):
    torch = pytest.importorskip("torch", reason="PyTorch parity needs the extra `torch`")
    qwen3 = pytest.importorskip(
        "transformers.models.qwen3.modeling_qwen3", reason="PyTorch parity needs the extra `torch`"
    )
    config = qwen3.Qwen3Config(
        head_dim=16, rope_parameters={"rope_type": "default", "rope_theta": theta}
    )
    x_BTNH = np.random.default_rng(0).normal(size=(2, 6, 3, 16)).astype(np.float32)
    positions_BT = np.array([[0, 1, 2, 3, 4, 5], [7, 8, 100, 101, 3000, 3001]])
    x_BNTH = torch.from_numpy(x_BTNH).transpose(1, 2)
    cos, sin = qwen3.Qwen3RotaryEmbedding(config)(x_BNTH, torch.from_numpy(positions_BT))
    wanted_BNTH, _ = qwen3.apply_rotary_pos_emb(x_BNTH, x_BNTH, cos, sin)
    out_BTNH = rope(jnp.asarray(x_BTNH), jnp.asarray(positions_BT), theta=theta)
    # Both take the angle of position 3000 in float32, whose last digit is 2e-4.
    assert_close(out_BTNH[0], wanted_BNTH.transpose(1, 2)[0], OP)
    assert_close(out_BTNH[1], wanted_BNTH.transpose(1, 2)[1], 3e-4)


def test_equals_a_rotation_of_each_pair():
    x_BTNH = np.random.default_rng(1).normal(size=(1, 5, 2, 8))
    positions_T = np.array([0, 3, 3, 11, 50])
    wanted_BTNH = np.empty_like(x_BTNH)
    for t, position in enumerate(positions_T):
        for i in range(4):
            angle = position * 100.0 ** (-2 * i / 8)
            pair = x_BTNH[0, t, :, i] + 1j * x_BTNH[0, t, :, i + 4]
            pair = pair * np.exp(1j * angle)
            wanted_BTNH[0, t, :, i], wanted_BTNH[0, t, :, i + 4] = pair.real, pair.imag
    out = rope(jnp.asarray(x_BTNH, jnp.float32), jnp.asarray(positions_T[None]), theta=100.0)
    assert_close(out, wanted_BTNH, OP)


def test_products_depend_on_distance_only():
    q, k = np.random.default_rng(2).normal(size=(2, 1, 1, 1, 8)).astype(np.float32)
    turn = lambda x, p: np.asarray(rope(jnp.asarray(x), jnp.array([[p]]), theta=1e4)).ravel()
    products = [turn(q, p + 5) @ turn(k, p) for p in (0, 1, 17, 40)]
    assert np.ptp(products) < 1e-5
    assert abs(products[0] - turn(q, 0) @ turn(k, 0)) > 1e-2

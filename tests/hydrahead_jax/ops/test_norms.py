"""Compares norms with Qwen3's own and with numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hydrahead_jax.ops.norms import l2_norm, rms_norm
from tests.tolerances import OP, assert_close


@pytest.fixture
def x_BTNH():
    return np.random.default_rng(0).normal(size=(2, 5, 3, 16)).astype(np.float32) * 7


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rms_norm_equals_qwen3(x_BTNH, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch parity needs the extra `torch`")
    qwen3 = pytest.importorskip(
        "transformers.models.qwen3.modeling_qwen3", reason="PyTorch parity needs the extra `torch`"
    )
    weight_H = np.linspace(-1, 2, 16).astype(np.float32)
    norm = qwen3.Qwen3RMSNorm(16, eps=1e-6)
    norm.weight.data = torch.from_numpy(weight_H).to(getattr(torch, dtype))
    with torch.no_grad():
        wanted = norm(torch.from_numpy(x_BTNH).to(getattr(torch, dtype))).float().numpy()
    out = rms_norm(jnp.asarray(x_BTNH, dtype), jnp.asarray(weight_H, dtype), eps=1e-6)
    assert out.dtype == dtype
    assert_close(out.astype(jnp.float32), wanted, OP if dtype == "float32" else 2**-8)


def test_rms_norm_equals_numpy(x_BTNH):
    wide = x_BTNH.astype(np.float64)
    wanted = wide / np.sqrt(np.mean(wide**2, axis=-1, keepdims=True) + 1e-3) * 2
    assert_close(rms_norm(jnp.asarray(x_BTNH), jnp.full((16,), 2.0), eps=1e-3), wanted, OP)


def test_l2_norm_gives_unit_vectors(x_BTNH):
    wide = x_BTNH.astype(np.float64)
    wanted = wide / np.linalg.norm(wide, axis=-1, keepdims=True)
    assert_close(l2_norm(jnp.asarray(x_BTNH)), wanted, OP)


def test_l2_norm_of_zero_is_zero_and_so_is_its_gradient_finite():
    zero = jnp.zeros((1, 1, 1, 4))
    assert not np.any(l2_norm(zero))
    assert np.all(np.isfinite(jax.grad(lambda x: jnp.sum(l2_norm(x)))(zero)))

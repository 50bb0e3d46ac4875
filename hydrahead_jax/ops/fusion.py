"""Brings the two kinds of heads to one scale (Eq 13, arXiv 2606.20097)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hydrahead_jax.ops.norms import rms_norm


def scale_normalise(
    heads_BTNH: Float[Array, "B T N H"],
    norm_H: Float[Array, " H"],
    gate_BTNH: Float[Array, "B T N H"],
    gamma_N: Float[Array, " N"],
    *,
    eps: float,
) -> Float[Array, "B T N H"]:
    """Computes gamma_h * gate * RMSNorm(O_h)."""
    normed_BTNH = rms_norm(heads_BTNH, norm_H, eps=eps)
    return normed_BTNH * gate_BTNH * gamma_N[:, None].astype(heads_BTNH.dtype)


def branch_weights(
    x_BTD: Float[Array, "B T D"], w_D2: Float[Array, "D 2"]
) -> Float[Array, "B T 2"]:
    """Computes 2 softmax(x W) over the two branches: exactly 1 for both where W is zero."""
    return 2.0 * jax.nn.softmax(jnp.einsum("BTD,DX->BTX", x_BTD, w_D2), axis=-1)

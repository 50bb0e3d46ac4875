"""Computes the gates of Gated DeltaNet, slots and gated attention, and the scale of the query."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from hydrahead_jax.ops.wide import wide


def log_decay(
    x_BTN: Float[Array, "B T N"], a_log_N: Float[Array, " N"], dt_bias_N: Float[Array, " N"]
) -> Float[Array, "B T N"]:
    """Computes ln(alpha) = -exp(A_log) softplus(x + dt_bias), float32 (arXiv 2412.06464)."""
    return -jnp.exp(a_log_N) * jax.nn.softplus(wide(x_BTN) + dt_bias_N)


def write_strength(x_BTN: Float[Array, "B T N"], *, neg_eigval: bool) -> Float[Array, "B T N"]:
    """Computes beta = sigmoid(x), or 2 sigmoid(x) with `neg_eigval`.

    The state transition may then have eigenvalue -1.
    """
    return jax.nn.sigmoid(wide(x_BTN)) * (2.0 if neg_eigval else 1.0)


def log_forget(x_BTKM: Float[Array, "B T K M"], *, normaliser: float) -> Float[Array, "B T K M"]:
    """Computes ln(alpha) = ln(sigmoid(x)) / normaliser, float32 (arXiv 2510.07019)."""
    return jax.nn.log_sigmoid(wide(x_BTKM)) / normaliser


def output_gate(x: Float[Array, "*B H"]) -> Float[Array, "*B H"]:
    """Computes 2 sigmoid(x): exactly 1 where the gate's weights are zero."""
    return 2.0 * jax.nn.sigmoid(x)


def log_query_scale(positions_BT: Int[Array, "B T"], *, base: float) -> Float[Array, "B T"]:
    """Computes ln(t + a) / ln(a).

    This scale keeps the attention of NoPE heads sharp at long range (HALO).
    """
    return jnp.log(positions_BT.astype(jnp.float32) + base) / jnp.log(base)

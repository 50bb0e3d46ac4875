"""Measures the heads of a layer as (sum, count) over the tokens that are not padding."""

import jax
import jax.numpy as jnp

from hydrahead_jax.mixers.types import Stream

Statistic = tuple[jax.Array, jax.Array]


def branch_statistics(stream: Stream, name: str, out_BTNH, gate_BTNH) -> dict[str, Statistic]:
    """Returns statistics of heads before gate and norm, and of their gate."""
    square_BTNH = out_BTNH.astype(jnp.float32) ** 2
    return {
        f"{name}_mean_square": over_tokens(stream, square_BTNH),
        f"{name}_gate": over_tokens(stream, gate_BTNH),
    }


def over_tokens(stream: Stream, x: jax.Array) -> Statistic:
    """Returns sum and count of [B, T, ...] over real tokens; no gradient, free if unused."""
    real_BT = stream.segment_ids_BT != 0
    x_BT = jnp.sum(jax.lax.stop_gradient(x).astype(jnp.float32), axis=tuple(range(2, x.ndim)))
    count = jnp.sum(real_BT, dtype=jnp.float32) * (x.size // real_BT.size)
    return jnp.sum(jnp.where(real_BT, x_BT, 0.0)), count

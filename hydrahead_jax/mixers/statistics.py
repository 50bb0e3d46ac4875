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
    return _sums(stream, jax.lax.stop_gradient(x))


def slots_statistics(stream: Stream, slots_lse_BTN, window_lse_BTN) -> dict[str, Statistic]:
    """Returns "sigma", the slots' share of the softmax, and "slots_bce", -log(sigma).

    The latter has a gradient by the slots' log-sum-exp alone: minimising it makes the slots larger,
    not the window smaller. Where a query sees no slot both are 0.
    """
    seen_BTN = slots_lse_BTN > -jnp.inf
    window_lse_BTN = jax.lax.stop_gradient(window_lse_BTN)
    odds_BTN = jnp.where(seen_BTN, slots_lse_BTN, 0.0) - window_lse_BTN
    sigma_BTN = jnp.where(seen_BTN, jax.nn.sigmoid(odds_BTN), 0.0)
    bce_BTN = jnp.where(seen_BTN, jax.nn.softplus(-odds_BTN), 0.0)
    return {"sigma": over_tokens(stream, sigma_BTN), "slots_bce": _sums(stream, bce_BTN)}


def _sums(stream: Stream, x: jax.Array) -> Statistic:
    real_BT = stream.segment_ids_BT != 0
    x_BT = jnp.sum(x.astype(jnp.float32), axis=tuple(range(2, x.ndim)))
    count = jnp.sum(real_BT, dtype=jnp.float32) * (x.size // real_BT.size)
    return jnp.sum(jnp.where(real_BT, x_BT, 0.0)), count

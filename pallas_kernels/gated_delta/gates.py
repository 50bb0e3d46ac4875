"""Expresses segments, padding and extreme decays by the two gates alone.

A reset of the state is a decay that rounds to zero, and a token with decay 1 and write strength 0
leaves the state unchanged. The kernels therefore need no segment ids.
"""

import jax.numpy as jnp

from pallas_kernels.gated_delta.segments import state_runs


def reset_log_decay(dtype) -> float:
    """Returns a log decay whose exp is exactly 0 in `dtype`; an integer, to keep sums exact."""
    return -1024.0 if jnp.dtype(dtype).itemsize == 8 else -128.0


def effective_gates(log_decay_BTN, beta_BTN, segment_ids_BT):
    """Returns gates after which segment ids are not needed any more. See `api.gated_delta`.

    Log decays are clamped at `reset_log_decay`, which changes no result: all of them forget
    everything.
    """
    reset = reset_log_decay(log_decay_BTN.dtype)
    log_decay_BTN = jnp.maximum(log_decay_BTN, reset)
    if segment_ids_BT is None:
        return log_decay_BTN, beta_BTN
    real_BT1 = (segment_ids_BT != 0)[..., None]
    starts_BT1 = (jnp.diff(state_runs(segment_ids_BT), axis=1, prepend=0) > 0)[..., None]
    log_decay_BTN = jnp.where(real_BT1, log_decay_BTN, 0.0)
    log_decay_BTN = jnp.where(starts_BT1, reset, log_decay_BTN)
    return log_decay_BTN, jnp.where(real_BT1, beta_BTN, 0.0)

"""Computes the gated delta rule in float64, from the paper and nothing in the project.

S_t = S_{t-1} alpha_t (I - beta_t k_t k_t^T) + beta_t v_t k_t^T and o_t = S_t q_t / sqrt(H), the
state with values as rows (arXiv 2412.06464, Eq 10).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tests.pallas_kernels.gated_delta.cases import Inputs


class Results(NamedTuple):
    """Holds output, final state, and the gradients of <out, cotangent> + <state, cotangent>."""

    out: np.ndarray
    state: np.ndarray
    dq: np.ndarray
    dk: np.ndarray
    dv: np.ndarray
    dlog_decay: np.ndarray
    dbeta: np.ndarray
    dstate: np.ndarray


def cotangents(inputs: Inputs):
    """Returns cotangents of the output and of the final state, rounded to the dtypes of those."""
    rng = np.random.default_rng(1)
    v, state = inputs.v_BTNP, inputs.state_BNHP
    return (
        jnp.asarray(rng.normal(size=v.shape), v.dtype),
        jnp.asarray(rng.normal(size=state.shape), state.dtype),
    )


def float64_results(inputs: Inputs, *, padded: int = 257) -> Results:
    """Computes the results that every implementation is compared with.

    Sequences are padded to one length, so that cases of the same head shape compile once.
    """
    T = inputs.segment_ids_BT.shape[1]

    def widen(x, is_sequence):
        wide = np.asarray(x.astype(jnp.float32), np.float64)
        tail = [(0, 0), (0, max(0, padded - T) * is_sequence)] + [(0, 0)] * (x.ndim - 2)
        return np.pad(wide, tail)

    sequences = [True] * 5 + [False, True, False]
    wide = [widen(*x) for x in zip((*inputs[:6], *cotangents(inputs)), sequences, strict=True)]
    ids_BT = np.pad(np.asarray(inputs.segment_ids_BT), ((0, 0), (0, max(0, padded - T))))
    with jax.enable_x64(True):
        found = Results(*map(np.asarray, _wide(_starts(ids_BT), ids_BT != 0, *wide)))
    return Results(
        *(x if name in ("state", "dstate") else x[:, :T] for name, x in found._asdict().items())
    )


def _starts(ids_BT: np.ndarray) -> np.ndarray:
    """Marks tokens before which the state is zeroed: a new id after an earlier document."""
    starts_BT = np.zeros(ids_BT.shape, bool)
    for ids, starts in zip(ids_BT, starts_BT, strict=True):
        current = 0
        for t, segment in enumerate(ids):
            if segment != 0:
                starts[t] = current not in (0, segment)
                current = segment
    return starts_BT


@jax.jit
def _wide(starts_BT, real_BT, q, k, v, log_decay, beta, state, out_bar, state_bar):
    rows = lambda *inputs: jax.vmap(_row)(*inputs, starts_BT, real_BT)
    outputs, pull = jax.vjp(rows, q, k, v, log_decay, beta, state)
    return *outputs, *pull((out_bar, state_bar))


def _row(q_TKH, k_TKH, v_TNP, log_decay_TN, beta_TN, state_NHP, starts_T, real_T):
    group = v_TNP.shape[1] // k_TKH.shape[1]
    head_of_value = np.arange(v_TNP.shape[1]) // group
    H = q_TKH.shape[-1]

    def head(q_TH, k_TH, v_TP, log_decay_T, beta_T, state_HP):
        def token(S, inputs):
            q, k, v, g, b, start, real = inputs
            S = jnp.where(start, 0.0, S)
            new = S * jnp.exp(g) @ (jnp.eye(H) - b * jnp.outer(k, k)) + b * jnp.outer(v, k)
            return jnp.where(real, new, S), jnp.where(real, new @ q / jnp.sqrt(H), 0.0)

        S, out_TP = jax.lax.scan(
            token, state_HP.T, (q_TH, k_TH, v_TP, log_decay_T, beta_T, starts_T, real_T)
        )
        return out_TP, S.T

    over_heads = jax.vmap(head, in_axes=(1, 1, 1, 1, 1, 0), out_axes=(1, 0))
    q_TNH, k_TNH = q_TKH[:, head_of_value], k_TKH[:, head_of_value]
    return over_heads(q_TNH, k_TNH, v_TNP, log_decay_TN, beta_TN, state_NHP)

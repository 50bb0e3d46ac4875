"""Computes softmax attention and its gradients in float64, from the formula alone.

It uses nothing of the project. O = softmax(scale Q K^T + M) V with M 0 where a query sees a key and
-inf elsewhere (arXiv 1706.03762, Eq 1), head by head; L is the log of the softmax's denominator.
With P the softmax,

    dV = P^T dO,   dS = P (dO V^T - rowsum(P dO V^T) + dL),   dQ = scale dS K,   dK = scale dS^T Q.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from tests.pallas_kernels.attention.cases import Case, Inputs


class Results(NamedTuple):
    """Holds output, log-sum-exp, and the gradients of <out, cotangent> + <lse, cotangent>."""

    out: np.ndarray
    lse: np.ndarray
    dq: np.ndarray
    dk: np.ndarray
    dv: np.ndarray


def cotangents(inputs: Inputs, *, of_lse: float = 1.0):
    """Returns cotangents of the output, in its dtype, and of the log-sum-exp, float32.

    Those of the log-sum-exp are multiplied by `of_lse`.
    """
    rng = np.random.default_rng(1)
    q = inputs.q_BTNH
    out, lse = rng.normal(size=q.shape), of_lse * rng.normal(size=q.shape[:3])
    return (jnp.asarray(out, q.dtype), jnp.asarray(lse, jnp.promote_types(q.dtype, jnp.float32)))


def float64_results(inputs: Inputs, case: Case, *, of_lse: float = 1.0) -> Results:
    """Computes the results that every implementation is compared with."""
    arrays = (*inputs[:3], *cotangents(inputs, of_lse=of_lse))
    q_BTNH, k_BSKH, v_BSKH, dout_BTNH, dlse_BTN = (
        np.asarray(x.astype(jnp.float32), np.float64) for x in arrays
    )
    scale = 1 / np.sqrt(q_BTNH.shape[-1]) if case.scale is None else case.scale
    arrays = [q_BTNH, dlse_BTN, q_BTNH, k_BSKH, v_BSKH]
    out_BTNH, lse_BTN, dq_BTNH, dk_BSKH, dv_BSKH = map(np.zeros_like, arrays)
    for row, (q_TNH, k_SKH, v_SKH) in enumerate(zip(q_BTNH, k_BSKH, v_BSKH, strict=True)):
        seen_TS = visible(inputs, case, row)
        for n, kv in enumerate(case.kv_head_of_query):
            out, lse, dq, dk, dv = _one_head(
                q_TNH[:, n],
                k_SKH[:, kv],
                v_SKH[:, kv],
                seen_TS,
                scale,
                dout_BTNH[row, :, n],
                dlse_BTN[row, :, n],
            )
            out_BTNH[row, :, n], lse_BTN[row, :, n], dq_BTNH[row, :, n] = out, lse, dq
            dk_BSKH[row, :, kv] += dk
            dv_BSKH[row, :, kv] += dv
    return Results(out_BTNH, lse_BTN, dq_BTNH, dk_BSKH, dv_BSKH)


def visible(inputs: Inputs, case: Case, row: int) -> np.ndarray:
    """Returns which keys each query of a row sees [T, S]."""
    T, S = inputs.q_BTNH.shape[1], inputs.k_BSKH.shape[1]
    start = np.broadcast_to(inputs.q_start, len(inputs.q_BTNH))[row]
    behind_TS = start + np.arange(T)[:, None] - np.arange(S)
    seen_TS = np.ones((T, S), bool)
    if case.causal or case.window is not None:
        seen_TS &= behind_TS >= 0
    if case.window is not None:
        seen_TS &= behind_TS < case.window
    if inputs.segment_ids_BT is not None:
        queries_T1 = np.asarray(inputs.segment_ids_BT)[row][:, None]
        seen_TS &= (queries_T1 == np.asarray(inputs.kv_segment_ids_BS)[row]) & (queries_T1 != 0)
    return seen_TS


def _one_head(q_TH, k_SH, v_SH, seen_TS, scale, dout_TH, dlse_T):
    sees_T1 = seen_TS.any(axis=1, keepdims=True)
    scores_TS = np.where(seen_TS, scale * (q_TH @ k_SH.T), -np.inf)
    peak_T1 = np.where(sees_T1, scores_TS.max(axis=1, keepdims=True), 0.0)
    terms_TS = np.exp(scores_TS - peak_T1)
    total_T1 = np.where(sees_T1, terms_TS.sum(axis=1, keepdims=True), 1.0)
    p_TS = terms_TS / total_T1
    lse_T = np.where(sees_T1, peak_T1 + np.log(total_T1), -np.inf)[:, 0]
    dp_TS = dout_TH @ v_SH.T
    ds_TS = p_TS * (dp_TS - np.sum(p_TS * dp_TS, axis=1, keepdims=True) + dlse_T[:, None])
    return p_TS @ v_SH, lse_T, scale * (ds_TS @ k_SH), scale * (ds_TS.T @ q_TH), p_TS.T @ dout_TH

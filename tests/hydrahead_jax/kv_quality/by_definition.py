"""Computes the errors of a format in numpy float64, from queries, keys and values."""

import functools

import jax
import numpy as np

from pallas_kernels.kv_cache.side import Side


def restored(side: Side, x_XH) -> np.ndarray:
    """Returns what a format restores; the formats have tests of their own."""
    return np.asarray(_restored(x_XH, side), np.float64)


@functools.partial(jax.jit, static_argnames="side")
def _restored(x_XH, side: Side):
    return side.decode(side.encode(x_XH))


def errors(q_BTNH, k_BTH, v_BTH, others, null_keys: int) -> dict[str, float]:
    """Returns the errors of one KV head, read by N queries; `others` is its restored k and v."""
    arrays = (q_BTNH, k_BTH, v_BTH, *others)
    q_BTNH, k_BTH, v_BTH, k2_BTH, v2_BTH = (np.asarray(x, np.float64) for x in arrays)
    (score_X, out), (score2_X, out2) = (
        _attention(q_BTNH, *kv, null_keys) for kv in ((k_BTH, v_BTH), (k2_BTH, v2_BTH))
    )
    return {
        "k_relative_mse": _relative(k_BTH, k2_BTH),
        "k_cosine": _cosine(k_BTH, k2_BTH),
        "v_relative_mse": _relative(v_BTH, v2_BTH),
        "v_cosine": _cosine(v_BTH, v2_BTH),
        "logit_error": np.std(score2_X - score_X),
        "output_error": _relative(out, out2),
    }


def _relative(x, other) -> float:
    return np.sum((other - x) ** 2) / np.sum(x**2)


def _cosine(x_BTH, other_BTH) -> float:
    norms_BT = np.linalg.norm(x_BTH, axis=-1) * np.linalg.norm(other_BTH, axis=-1)
    return np.mean(np.sum(x_BTH * other_BTH, axis=-1) / norms_BT)


def _attention(q_BTNH, k_BTH, v_BTH, null_keys: int):
    """Returns the scores of all pairs that are seen, and outputs, row by row."""
    B, T, N, H = q_BTNH.shape
    scores, outputs = [], []
    for b, n, t in np.ndindex(B, N, T):
        score_S = k_BTH[b, : t + 1] @ q_BTNH[b, t, n] / np.sqrt(H)
        scores.append(score_S)
        p_S = np.exp(np.append(score_S, np.zeros(null_keys)))
        outputs.append(p_S[: t + 1] / p_S.sum() @ v_BTH[b, : t + 1])
    return np.concatenate(scores), np.stack(outputs)

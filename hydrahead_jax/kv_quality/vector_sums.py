"""Compares keys and values with what formats restore of them, and the attention to both."""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.kv_cache.side import Side


@functools.partial(jax.jit, static_argnames="side")
def restored(side: Side, x_BTH):
    """Returns what a format restores of vectors, float32."""
    return side.decode(side.encode(x_BTH))


@jax.jit
def vector_sums(x_BTH, other_BTH) -> dict:
    """Sums over vectors: their squares, the squared errors of others, and the cosines of both."""
    x_BTH, other_BTH = x_BTH.astype(jnp.float32), other_BTH.astype(jnp.float32)
    of = lambda a, b: jnp.sum(a * b, axis=-1)
    norms_BT = jnp.sqrt(of(x_BTH, x_BTH) * of(other_BTH, other_BTH))
    is_same_BT = jnp.all(x_BTH == other_BTH, axis=-1)
    cosine_BT = of(x_BTH, other_BTH) / jnp.where(norms_BT > 0, norms_BT, 1.0)
    return {
        "power": jnp.sum(x_BTH**2),
        "error": jnp.sum((other_BTH - x_BTH) ** 2),
        "cosine": jnp.sum(jnp.where(is_same_BT, 1.0, cosine_BT)),
    }


@functools.partial(jax.jit, static_argnames="null_keys")
def attention_sums(q_BTH, kv, others, *, null_keys: int) -> dict:
    """Sums over causal pairs the differences of scores, and over outputs the squared errors.

    Args:
      q_BTH: queries of one head.
      kv: keys and values [B, T, H] that it reads.
      others: what a format restores of both.
      null_keys: number of keys of logit 0 and value 0 that every query sees too.
    """
    T = q_BTH.shape[1]
    seen_TS = jnp.tril(jnp.ones((T, T), bool))
    (s_BTS, out_BTH), (other_BTS, other_BTH) = (
        _attention(q_BTH, *pair, seen_TS, null_keys) for pair in (kv, others)
    )
    difference_BTS = jnp.where(seen_TS, other_BTS - s_BTS, 0.0)
    return {
        "score": jnp.sum(difference_BTS),
        "score_square": jnp.sum(difference_BTS**2),
        "output_power": jnp.sum(out_BTH**2),
        "output_error": jnp.sum((other_BTH - out_BTH) ** 2),
    }


@functools.partial(jax.jit, static_argnames="sides")
def encoding_errors(sides: tuple[Side, ...], x_BTH):
    """Returns the summed squared error [X] of each of X formats of one side."""
    x_BTH = x_BTH.astype(jnp.float32)
    return jnp.stack([jnp.sum((restored(side, x_BTH) - x_BTH) ** 2) for side in sides])


@jax.jit
def channel_squares(x_BTH):
    """Returns the sums of squares [H] of channels."""
    return jnp.sum(x_BTH.astype(jnp.float32) ** 2, axis=(0, 1))


def _attention(q_BTH, k_BSH, v_BSH, seen_TS, null_keys: int):
    """Returns scaled scores [B, T, S] and outputs [B, T, H], float32."""
    q_BTH, k_BSH, v_BSH = (x.astype(jnp.float32) for x in (q_BTH, k_BSH, v_BSH))
    s_BTS = jnp.einsum("BTH,BSH->BTS", q_BTH, k_BSH) * q_BTH.shape[-1] ** -0.5
    peak_BT1 = jnp.max(jnp.where(seen_TS, s_BTS, -jnp.inf), axis=-1, keepdims=True)
    peak_BT1 = jnp.maximum(peak_BT1, 0.0) if null_keys else peak_BT1
    p_BTS = jnp.where(seen_TS, jnp.exp(s_BTS - peak_BT1), 0.0)
    total_BT1 = jnp.sum(p_BTS, axis=-1, keepdims=True) + null_keys * jnp.exp(-peak_BT1)
    return s_BTS, jnp.einsum("BTS,BSH->BTH", p_BTS / total_BT1, v_BSH)

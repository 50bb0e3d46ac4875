"""Cuts the gated delta rule into chunks, and computes of each what needs no state."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.gated_delta.inverse import unit_lower_inverse

einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


class Chunks(NamedTuple):
    """Carries the inputs, float32 or float64, zeros after the last token; a loop removes axis Z."""

    q_ZBKCH: jax.Array
    k_ZBKCH: jax.Array
    v_ZBNCP: jax.Array
    log_decay_ZBNC: jax.Array
    beta_ZBNC: jax.Array


class Within(NamedTuple):
    """Carries the decays and products inside each chunk.

    Attributes:
      decay_ZBNCC: decay of the write of token j until token i reads, 0 for j > i.
      keys_ZBNCC: decayed products of keys i and j, j < i.
      queries_ZBNCC: decayed products of query i and key j, j <= i, times scale.
      inverse_ZBNCC: (I + beta_i keys_ij)^-1.
      from_entry_ZBNC: decay of the entering state until token i reads.
      to_exit_ZBNC: decay of the write of token i until the chunk ends.
    """

    decay_ZBNCC: jax.Array
    keys_ZBNCC: jax.Array
    queries_ZBNCC: jax.Array
    inverse_ZBNCC: jax.Array
    from_entry_ZBNC: jax.Array
    to_exit_ZBNC: jax.Array


def within(chunks: Chunks, scale: float) -> Within:
    """Computes the decays and products inside each chunk.

    The inverse is computed without the decays and multiplied by them afterwards, which is exact:
    decay(i, j) factors over the tokens between j and i.
    """
    q_ZBKCH, k_ZBKCH, _, log_decay_ZBNC, beta_ZBNC = chunks
    lower_CC, strictly_lower_CC = _triangles(log_decay_ZBNC)
    decay_ZBNCC = jnp.where(lower_CC, jnp.exp(sums_between(log_decay_ZBNC)), 0.0)
    keys_ZBKCC = einsum("ZBKCH,ZBKDH->ZBKCD", k_ZBKCH, k_ZBKCH) * strictly_lower_CC
    queries_ZBKCC = einsum("ZBKCH,ZBKDH->ZBKCD", q_ZBKCH, k_ZBKCH) * scale
    keys_ZBNCC, queries_ZBNCC = (
        for_values(x, beta_ZBNC, axis=2) for x in (keys_ZBKCC, queries_ZBKCC)
    )
    return Within(
        decay_ZBNCC=decay_ZBNCC,
        keys_ZBNCC=keys_ZBNCC * decay_ZBNCC,
        queries_ZBNCC=queries_ZBNCC * decay_ZBNCC,
        inverse_ZBNCC=unit_lower_inverse(beta_ZBNC[..., None] * keys_ZBNCC) * decay_ZBNCC,
        from_entry_ZBNC=jnp.exp(jnp.cumsum(log_decay_ZBNC, axis=-1)),
        to_exit_ZBNC=decay_ZBNCC[..., -1, :],
    )


def advance(state_BNHP, chunk: Chunks, inside: Within):
    """Advances one chunk: returns the state after it, the prediction errors E and the writes U."""
    k_BNCH = for_values(chunk.k_ZBKCH, state_BNHP, axis=1)
    from_entry_BNC1 = inside.from_entry_ZBNC[..., None]
    seen_BNCP = einsum("BNCH,BNHP->BNCP", k_BNCH, state_BNHP)
    error_BNCP = chunk.v_ZBNCP - from_entry_BNC1 * seen_BNCP
    right_BNCP = chunk.beta_ZBNC[..., None] * error_BNCP
    write_BNCP = einsum("BNCD,BNDP->BNCP", inside.inverse_ZBNCC, right_BNCP)
    remembered_BNCP = inside.to_exit_ZBNC[..., None] * write_BNCP
    added_BNHP = einsum("BNCH,BNCP->BNHP", k_BNCH, remembered_BNCP)
    return from_entry_BNC1[..., -1:, :] * state_BNHP + added_BNHP, error_BNCP, write_BNCP


def for_values(x_K, like_N, *, axis: int):
    """Gives every value head the row of its key head."""
    return jnp.repeat(x_K, like_N.shape[axis] // x_K.shape[axis], axis=axis)


def sums_between(x_ZBNC):
    """Sums x over j < m <= i into [..., i, j], without ever subtracting two sums."""
    up_to_CC, after_CC = _triangles(x_ZBNC)
    return einsum("im,...m,mj->...ij", up_to_CC, x_ZBNC, after_CC)


def sums_around(y_BNCC):
    """Sums y[..., i, j] over j < m <= i into [..., m]: the transpose of `sums_between`."""
    up_to_CC, after_CC = _triangles(y_BNCC)
    return jnp.sum(einsum("im,...ij->...mj", up_to_CC, y_BNCC) * after_CC, axis=-1)


def _triangles(x):
    ones_CC = jnp.ones((x.shape[-1], x.shape[-1]), x.dtype)
    return jnp.tril(ones_CC), jnp.tril(ones_CC, -1)


def cut(arrays_BTN, *, chunk: int, dtype):
    """Cuts [B, T, N, ...] into [Z, B, N, C, ...], zeros after the last token."""

    def one(x_BTN):
        B, T = x_BTN.shape[:2]
        chunks = -(-T // chunk)
        widths = [(0, 0), (0, chunks * chunk - T)] + [(0, 0)] * (x_BTN.ndim - 2)
        x_BZC = jnp.pad(x_BTN.astype(dtype), widths).reshape(B, chunks, chunk, *x_BTN.shape[2:])
        return jnp.moveaxis(x_BZC, (1, 2), (0, 3))

    return map(one, arrays_BTN)


def join(x_ZBNC, like_BTN):
    """Joins [Z, B, N, C, ...] into [B, T, N, ...], in shape and dtype like `like`."""
    T = like_BTN.shape[1]
    x_BZC = jnp.moveaxis(x_ZBNC, (0, 3), (1, 2))
    return jax.lax.collapse(x_BZC, 1, 3)[:, :T].astype(like_BTN.dtype)

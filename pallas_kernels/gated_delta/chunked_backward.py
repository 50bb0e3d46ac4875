"""Computes the backward of the chunked gated delta rule, in the notation of `chunked`.

Chunk after chunk from the last, with L = beta keys, A = (I + L)^-1 and Y the gradient of beta E:

    dU = queries^T dO + to_exit K dS'              Y = A^T dU,  dV = dE = beta Y
    dqueries = dO U^T                              dL = -Y U^T
    dS = through dS' + scale (from_entry Q)^T dO - (from_entry K)^T dV

The log decay of token m acts on all that passes it: from token j to token i for j < m <= i, from
the entry to i, from j to the exit. Its gradient is the sum over those, and no sum is subtracted
from another: under strong decays the difference would be all rounding.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.gated_delta.chunks import (
    Chunks,
    Within,
    advance,
    cut,
    einsum,
    for_values,
    join,
    sums_around,
    within,
)


def gradients(arrays, cotangents, *, scale: float, chunk: int):
    """Returns the gradients of q, k, v, log_decay, beta and the initial state."""
    *sequences, state_BNHP = arrays
    dout_BTNP, dstate_BNHP = cotangents
    *chunks, dout_ZBNCP = cut([*sequences, dout_BTNP], chunk=chunk, dtype=state_BNHP.dtype)
    chunks = Chunks(*chunks)
    inside = within(chunks, scale)

    def forward_step(state_BNHP, inputs):
        after_BNHP, *found = advance(state_BNHP, *inputs)
        return after_BNHP, (state_BNHP, *found)

    def backward_step(dstate_BNHP, inputs):
        return _chunk_gradients(dstate_BNHP, *inputs, scale=scale)

    _, recomputed = jax.lax.scan(forward_step, state_BNHP, (chunks, inside))
    every = (chunks, inside, *recomputed, dout_ZBNCP)
    dstate_BNHP, dchunks = jax.lax.scan(backward_step, dstate_BNHP, every, reverse=True)
    return *map(join, dchunks, sequences), dstate_BNHP


def _chunk_gradients(
    dafter_BNHP,
    chunk: Chunks,
    inside: Within,
    state_BNHP,
    error_BNCP,
    write_BNCP,
    dout_BNCP,
    *,
    scale,
):
    """Returns for one chunk the gradient of the entering state and a `Chunks` of gradients."""
    q_BKCH, k_BKCH, _, _, beta_BNC = chunk
    q_BNCH, k_BNCH = (for_values(x, state_BNHP, axis=1) for x in (q_BKCH, k_BKCH))
    from_entry_BNC1, to_exit_BNC1, beta_BNC1 = (
        x[..., None] for x in (inside.from_entry_ZBNC, inside.to_exit_ZBNC, beta_BNC)
    )
    later_BNCP = to_exit_BNC1 * einsum("BNCH,BNHP->BNCP", k_BNCH, dafter_BNHP)
    dwrite_BNCP = einsum("BNCD,BNCP->BNDP", inside.queries_ZBNCC, dout_BNCP) + later_BNCP
    y_BNCP = einsum("BNCD,BNCP->BNDP", inside.inverse_ZBNCC, dwrite_BNCP)
    dv_BNCP = beta_BNC1 * y_BNCP

    reads_BNXH = jnp.concatenate([q_BNCH, k_BNCH], axis=2)
    dreads_BNXP = [scale * from_entry_BNC1 * dout_BNCP, -from_entry_BNC1 * dv_BNCP]
    dreads_BNXP = jnp.concatenate(dreads_BNXP, axis=2)
    through_BN11 = from_entry_BNC1[..., -1:, :]
    dstate_BNHP = einsum("BNXH,BNXP->BNHP", reads_BNXH, dreads_BNXP) + through_BN11 * dafter_BNHP
    dreads_BNXH = einsum("BNXP,BNHP->BNXH", dreads_BNXP, state_BNHP)
    entered_BNX = jnp.sum(dreads_BNXH * reads_BNXH, axis=-1)
    dq_BNCH, dk_BNCH = jnp.split(dreads_BNXH, 2, axis=2)

    dqk_BNCC, dkk_BNCC, dbeta_BNC, between_BNCC = _pair_gradients(
        beta_BNC, inside, dout_BNCP, y_BNCP, write_BNCP, scale=scale
    )
    dq_BNCH += einsum("BNCD,BNDH->BNCH", dqk_BNCC, k_BNCH)
    dk_BNCH += einsum("BNCD,BNCH->BNDH", dqk_BNCC, q_BNCH)
    dk_BNCH += einsum("BNCD,BNDH->BNCH", dkk_BNCC + jnp.swapaxes(dkk_BNCC, -1, -2), k_BNCH)
    dk_BNCH += einsum("BNCP,BNHP->BNCH", to_exit_BNC1 * write_BNCP, dafter_BNHP)

    dlog_decay_BNC = _log_decay_gradient(
        between_BNCC=between_BNCC,
        from_entry_BNC=sum(jnp.split(entered_BNX, 2, axis=-1)),
        to_exit_BNC=jnp.sum(later_BNCP * write_BNCP, -1),
        through_BN=jnp.sum(through_BN11 * dafter_BNHP * state_BNHP, (-2, -1)),
    )
    return dstate_BNHP, Chunks(
        q_ZBKCH=_sum_values(dq_BNCH, q_BKCH),
        k_ZBKCH=_sum_values(dk_BNCH, k_BKCH),
        v_ZBNCP=dv_BNCP,
        log_decay_ZBNC=dlog_decay_BNC,
        beta_ZBNC=jnp.sum(y_BNCP * error_BNCP, -1) + dbeta_BNC,
    )


def _pair_gradients(beta_BNC, inside: Within, dout_BNCP, y_BNCP, write_BNCP, *, scale):
    """Returns the gradients by way of the products of two tokens of a chunk.

    Returns:
      The gradients of the products of query i and key j, of those of keys i and j, and of beta
      by way of L; and what the log decays between j and i get.
    """
    dqueries_BNCC = einsum("BNCP,BNDP->BNCD", dout_BNCP, write_BNCP)
    dlower_BNCC = -einsum("BNCP,BNDP->BNCD", y_BNCP, write_BNCP)
    dqk_BNCC = scale * dqueries_BNCC * inside.decay_ZBNCC
    dkk_BNCC = jnp.tril(beta_BNC[..., None] * dlower_BNCC * inside.decay_ZBNCC, -1)
    dlower_keys_BNCC = dlower_BNCC * inside.keys_ZBNCC
    between_BNCC = dqueries_BNCC * inside.queries_ZBNCC + beta_BNC[..., None] * dlower_keys_BNCC
    return dqk_BNCC, dkk_BNCC, jnp.sum(dlower_keys_BNCC, -1), between_BNCC


def _sum_values(x_BNCH, like_BKCH):
    """Sums over the value heads that read one key head."""
    B, K, C, H = like_BKCH.shape
    return jnp.sum(x_BNCH.reshape(B, K, -1, C, H), axis=2)


def _log_decay_gradient(*, between_BNCC, from_entry_BNC, to_exit_BNC, through_BN):
    """Sums the parts; each argument is a gradient times its value, for one way past a token."""
    after_BNC = jax.lax.cumsum(from_entry_BNC, axis=2, reverse=True)
    before_BNC = jnp.pad(jnp.cumsum(to_exit_BNC, -1), [(0, 0), (0, 0), (1, 0)])[..., :-1]
    return sums_around(between_BNCC) + after_BNC + before_BNC + through_BN[..., None]

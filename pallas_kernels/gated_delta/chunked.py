"""The gated delta rule by chunks, in plain JAX: differentiable, for any backend.

Within a chunk the recurrence is one unit lower triangular system. It is solved without the gates,
which are multiplied on afterwards: decay(i, j) factors over the tokens between j and i, so gating
the inverse entry by entry is exact, and no exponent is ever above zero.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.gated_delta.inverse import unit_lower_inverse


def gated_delta_chunked(
    q_BTKH,
    k_BTKH,
    v_BTNP,
    log_decay_BTN,
    beta_BTN,
    state_BNHP,
    *,
    scale,
    interpret=False,
    chunk: int = 32,
):
    """See `api.gated_delta`. Memory is linear in T; one state a chunk is kept for the backward."""
    with jax.default_matmul_precision("highest"):
        return _chunked(
            q_BTKH, k_BTKH, v_BTNP, log_decay_BTN, beta_BTN, state_BNHP, scale=scale, chunk=chunk
        )


def _chunked(q_BTKH, k_BTKH, v_BTNP, log_decay_BTN, beta_BTN, state_BNHP, *, scale, chunk):
    dtype = jnp.promote_types(v_BTNP.dtype, jnp.float32)
    B, T, N, P = v_BTNP.shape
    group = N // k_BTKH.shape[2]
    q_BTNH = jnp.repeat(q_BTKH, group, axis=2).astype(dtype) * scale
    k_BTNH = jnp.repeat(k_BTKH, group, axis=2).astype(dtype)

    split = lambda x: _split(x, chunk)
    q_ZBNCH, k_ZBNCH, v_ZBNCP = split(q_BTNH), split(k_BTNH), split(v_BTNP.astype(dtype))
    log_decay_ZBNC, beta_ZBNC = split(log_decay_BTN), split(beta_BTN)
    decay_ZBNCC = jnp.where(
        jnp.tril(jnp.ones((chunk, chunk), bool)),
        jnp.exp(_pairwise_log_decay(log_decay_ZBNC)),
        0.0,
    )
    from_entry_ZBNC = jnp.exp(jnp.cumsum(log_decay_ZBNC, axis=-1))
    keys_ZBNCC = jnp.einsum("ZBNCH,ZBNDH->ZBNCD", k_ZBNCH, k_ZBNCH)
    lower_ZBNCC = jnp.tril(beta_ZBNC[..., None] * keys_ZBNCC, -1)
    solve_ZBNCC = unit_lower_inverse(lower_ZBNCC) * decay_ZBNCC * beta_ZBNC[..., None, :]
    scores_ZBNCC = jnp.einsum("ZBNCH,ZBNDH->ZBNCD", q_ZBNCH, k_ZBNCH) * decay_ZBNCC

    @jax.checkpoint
    def step(state_BNHP, chunk_inputs):
        q_BNCH, k_BNCH, v_BNCP, solve_BNCC, scores_BNCC, from_entry_BNC, to_exit_BNC = chunk_inputs
        gate_BNC1 = from_entry_BNC[..., None]
        write_BNCP = solve_BNCC @ (v_BNCP - gate_BNC1 * (k_BNCH @ state_BNHP))
        out_BNCP = gate_BNC1 * (q_BNCH @ state_BNHP) + scores_BNCC @ write_BNCP
        kept_BNHP = from_entry_BNC[..., -1, None, None] * state_BNHP
        added_BNHP = jnp.einsum("BNCH,BNC,BNCP->BNHP", k_BNCH, to_exit_BNC, write_BNCP)
        return kept_BNHP + added_BNHP, out_BNCP

    state_BNHP, out_ZBNCP = jax.lax.scan(
        step,
        state_BNHP.astype(dtype),
        (
            q_ZBNCH,
            k_ZBNCH,
            v_ZBNCP,
            solve_ZBNCC,
            scores_ZBNCC,
            from_entry_ZBNC,
            decay_ZBNCC[..., -1, :],
        ),
    )
    out_BTNP = jnp.moveaxis(out_ZBNCP, (0, 3), (1, 2)).reshape(B, -1, N, P)[:, :T]
    return out_BTNP.astype(v_BTNP.dtype), state_BNHP


def _split(x_BTN, chunk: int):
    """[B, T, N, ...] -> [Z, B, N, C, ...] chunks, padded with zeros at the end."""
    B, T = x_BTN.shape[:2]
    chunks = -(-T // chunk)
    widths = [(0, 0), (0, chunks * chunk - T)] + [(0, 0)] * (x_BTN.ndim - 2)
    x_BZC = jnp.pad(x_BTN, widths).reshape(B, chunks, chunk, *x_BTN.shape[2:])
    return jnp.moveaxis(jnp.moveaxis(x_BZC, 1, 0), 2, 3)


def _pairwise_log_decay(log_decay_ZBNC):
    """[..., i, j] = the sum of log_decay over j < m <= i, without ever subtracting two sums."""
    size = log_decay_ZBNC.shape[-1]
    after = jnp.tril(jnp.ones((size, size), log_decay_ZBNC.dtype), -1)
    up_to = jnp.tril(jnp.ones((size, size), log_decay_ZBNC.dtype))
    return jnp.einsum("im,...m,mj->...ij", up_to, log_decay_ZBNC, after)

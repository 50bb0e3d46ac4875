"""Runs the gated delta rule over rows that lie on several ranks.

What a chunk of tokens does to the state is an affine map, S -> M S + A, and its output is
O_0 + W S for the state S that enters it. The rule acts on columns of values and state one by one,
so one call gives all four: to the P columns with zero state come H more, with zero values and the
identity as state.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from hydrahead_jax.context.order import Order
from hydrahead_jax.context.passing import pass_states
from hydrahead_jax.context.ranks import chunks_of, vary_over, whole
from pallas_kernels import gated_delta
from pallas_kernels.gated_delta.gates import reset_log_decay


def context_gated_delta(
    q_BTKH: Float[Array, "B T K H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTNP: Float[Array, "B T N P"],
    log_decay_BTN: Float[Array, "B T N"],
    beta_BTN: Float[Array, "B T N"],
    *,
    axis: str,
    order: Order,
    segment_ids_BT: Int[Array, "B T"],
    starts_BT: Bool[Array, "B T"],
    initial_state_BNHP: Float[Array, "B N H P"] | None = None,
    implementation: str | None = None,
    interpret=False,
) -> tuple[Float[Array, "B T N P"], Float[Array, "B N H P"]]:
    """Runs `pallas_kernels.gated_delta` over complete rows, inside `jax.shard_map`; differentiable.

    Costs the rule with values of P + H in place of P (on TPU 1.5 times one with P = H = 128, at
    most twice), the product W S, and log2(R) exchanges of H x (P + H) numbers per head. Sums are
    float32, or float64 for float64 values. `jax.checkpoint` policies know what ranks receive as
    "gated_delta_states".

    Args:
      q_BTKH: this rank's tokens, as are all arrays with a T.
      axis: the mesh axis that the tokens lie over.
      order: the order in which the tokens lie over it.
      segment_ids_BT: as in `gated_delta`.
      starts_BT: true at the first token of every document but the row's first: a rank cannot see
        whether its first document began before.
      initial_state_BNHP: before the row's first token, the same on all ranks of `axis`.

    Returns:
      The output of this rank's tokens, and the state after the row's last token, float32 and the
      same on all ranks of `axis`. Other arguments and errors are those of `gated_delta`.
    """
    B, _, N, P = v_BTNP.shape
    dtype = jnp.promote_types(v_BTNP.dtype, jnp.float32)
    if initial_state_BNHP is None:
        initial_state_BNHP = jnp.zeros((B, N, q_BTKH.shape[-1], P), dtype)
    log_decay_BTN = jnp.where(starts_BT[..., None], reset_log_decay(dtype), log_decay_BTN)
    tokens = (q_BTKH, k_BTKH, v_BTNP, log_decay_BTN, beta_BTN, segment_ids_BT)
    chunks = [chunks_of(x, order) for x in vary_over(axis, *tokens)]
    wide = functools.partial(_wide_rule, implementation=implementation, interpret=interpret)
    out_XBTNP, map_XBNHP = wide(*chunks, dtype=dtype)
    entering, final_BNHP = pass_states(
        list(map_XBNHP),
        initial_state_BNHP.astype(dtype),
        axis,
        identity=jnp.eye(q_BTKH.shape[-1], map_XBNHP.shape[-1], P, dtype=map_XBNHP.dtype),
        apply=_apply,
        name="gated_delta_states",
    )
    seen_XBTNP = _product("XBTNH,XBNHP->XBTNP", out_XBTNP[..., P:], jnp.stack(entering))
    out_XBTNP = (out_XBTNP[..., :P] + seen_XBTNP).astype(v_BTNP.dtype)
    return whole(out_XBTNP), final_BNHP


def _wide_rule(q, k, v_XBTNP, log_decay_XBTN, beta_XBTN, ids_XBT, *, dtype, **how):
    """Returns [O_0, W] and the map [A, M] of each chunk of a rank."""
    X, B, T, N, P = v_XBTNP.shape
    H = q.shape[-1]
    rows = lambda x: x.reshape(X * B, *x.shape[2:])
    state_HP = jnp.concatenate([jnp.zeros((H, P), dtype), jnp.eye(H, dtype=dtype)], axis=1)
    out_BTNP, state_BNHP = gated_delta(
        rows(q),
        rows(k),
        jnp.pad(rows(v_XBTNP), [(0, 0)] * 3 + [(0, H)]),
        rows(log_decay_XBTN),
        rows(beta_XBTN),
        initial_state_BNHP=jnp.broadcast_to(state_HP, (X * B, N, H, P + H)),
        segment_ids_BT=rows(ids_XBT),
        **how,
    )
    return out_BTNP.reshape(X, B, T, N, P + H), state_BNHP.reshape(X, B, N, H, P + H)


def _apply(map_BNHP, x_BNHP):
    """Applies M x + A to a state x, or to another map, which composes the two."""
    H, width = map_BNHP.shape[2:]
    a_BNHP, m_BNHX = jnp.split(map_BNHP, [width - H], axis=3)
    more = x_BNHP.shape[3] - a_BNHP.shape[3]
    moved_BNHP = _product("BNHX,BNXP->BNHP", m_BNHX, x_BNHP)
    return moved_BNHP + jnp.pad(a_BNHP, [(0, 0)] * 3 + [(0, more)])


def _product(dims: str, a, b):
    dtype = jnp.promote_types(a.dtype, b.dtype)
    return jnp.einsum(dims, a.astype(dtype), b, precision=jax.lax.Precision.HIGHEST)

"""The gated delta rule over rows that lie on several ranks.

What a chunk of tokens does to the state is an affine map, S -> M S + A, and its output is
O = O_0 + W S for the state S that enters it. One call of the rule gives all four: beside each value
head with zero state it runs one with zero values whose state starts as the identity. The maps of
all chunks before a rank's are put together in a prefix scan over the ranks.

Sources: the state passing of arXiv 2412.06464's chunks, one level up; the scan is Hillis and
Steele's (doi 10.1145/7902.7903).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from hydrahead_jax.context.order import Order
from hydrahead_jax.context.ranks import along, chunks_of, of_rank, vary_over, whole
from pallas_kernels import gated_delta
from pallas_kernels.gated_delta.gates import reset_log_decay

_PRECISE = jax.lax.Precision.HIGHEST


class Map(NamedTuple):
    """S -> M S + A, of the states of B rows and N heads."""

    m_BNHX: jax.Array
    a_BNHP: jax.Array

    def __call__(self, state_BNHP):
        return _product(self.m_BNHX, state_BNHP) + self.a_BNHP

    def after(self, first: "Map") -> "Map":
        return Map(_product(self.m_BNHX, first.m_BNHX), self(first.a_BNHP))


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
    """`pallas_kernels.gated_delta` of whole rows. Runs inside `jax.shard_map`; differentiable.

    Costs twice the arithmetic of the rule itself, 2 log2(R) exchanges of matrices H x (H + P) a
    head, and the product W S.

    Args:
      q_BTKH: this rank's tokens, as are all arrays with a T.
      axis: the mesh axis that the tokens lie over.
      order: how they do.
      segment_ids_BT: as in `gated_delta`.
      starts_BT: true at the first token of every document but the row's first. It cannot be seen
        on one rank whether a document goes on there.
      initial_state_BNHP: before the row's first token, the same on all ranks of `axis`.

    Returns:
      The output of this rank's tokens, and the state after the row's last token, float32 and the
      same on all ranks of `axis`. Other arguments and errors as of `gated_delta`.
    """
    dtype = jnp.promote_types(v_BTNP.dtype, jnp.float32)
    reset = reset_log_decay(dtype)
    log_decay_BTN = jnp.where(starts_BT[..., None], reset, log_decay_BTN.astype(dtype))
    tokens = vary_over(
        axis, q_BTKH, k_BTKH, v_BTNP, log_decay_BTN, beta_BTN.astype(dtype), segment_ids_BT
    )
    chunks = [chunks_of(x, order) for x in tokens]
    out_XBTNP, read_XBTNH, maps_X = _chunks(*chunks, implementation, interpret)
    B, N, P = v_BTNP.shape[0], *v_BTNP.shape[2:]
    if initial_state_BNHP is None:
        initial_state_BNHP = jnp.zeros((B, N, q_BTKH.shape[-1], P), dtype)
    entering_X, final_BNHP = _pass_states(maps_X, initial_state_BNHP.astype(dtype), axis)
    seen_XBTNP = jnp.einsum(
        "XBTNH,XBNHP->XBTNP", read_XBTNH.astype(dtype), jnp.stack(entering_X), precision=_PRECISE
    )
    return whole((out_XBTNP + seen_XBTNP).astype(v_BTNP.dtype)), final_BNHP


def _chunks(q, k, v_XBTNP, log_decay_XBTN, beta_XBTN, ids_XBT, implementation, interpret):
    """O_0, W and the map of each of the X chunks of a rank, in one call of the rule."""
    X, B, _, N, P = v_XBTNP.shape
    H = q.shape[-1]
    width = max(H, P)
    rows = lambda x: x.reshape(X * B, *x.shape[2:])
    v_XBTNP = jnp.pad(v_XBTNP, [(0, 0)] * 4 + [(0, width - P)])
    v_BTNXP = jnp.stack([rows(v_XBTNP), jnp.zeros_like(rows(v_XBTNP))], axis=3)
    eye_HP = jnp.eye(H, width, dtype=log_decay_XBTN.dtype)
    states_XHP = jnp.stack([jnp.zeros_like(eye_HP), eye_HP])
    out_BTNP, state_BNHP = gated_delta(
        rows(q),
        rows(k),
        v_BTNXP.reshape(*v_BTNXP.shape[:2], 2 * N, width),
        jnp.repeat(rows(log_decay_XBTN), 2, axis=2),
        jnp.repeat(rows(beta_XBTN), 2, axis=2),
        initial_state_BNHP=jnp.tile(states_XHP, (X * B, N, 1, 1)),
        segment_ids_BT=rows(ids_XBT),
        implementation=implementation,
        interpret=interpret,
    )
    out_XBTNXP = out_BTNP.reshape(X, B, -1, N, 2, width)
    state_XBNXHP = state_BNHP.reshape(X, B, N, 2, H, width)
    maps = [Map(x[:, :, 1, :, :H], x[:, :, 0, :, :P]) for x in state_XBNXHP]
    return out_XBTNXP[..., 0, :P], out_XBTNXP[..., 1, :H], maps


def _pass_states(maps_X: list[Map], state_BNHP, axis: str):
    """The states that enter a rank's chunks, and the final one."""
    last = jax.lax.axis_size(axis) - 1
    low, *high = maps_X
    before, through = _scan(low, axis, 1)
    entering = [before(state_BNHP)]
    state_BNHP = of_rank(through(state_BNHP), axis, last)
    if high:
        before, through = _scan(high[0], axis, -1)
        entering.append(before(state_BNHP))
        state_BNHP = of_rank(through(state_BNHP), axis, 0)
    return entering, state_BNHP


def _scan(own: Map, axis: str, way: int) -> tuple[Map, Map]:
    """The maps of all ranks before this one put together, and those with its own; before is below
    (`way` 1) or above (-1).
    """
    R, rank = jax.lax.axis_size(axis), jax.lax.axis_index(axis)
    place = rank if way == 1 else R - 1 - rank
    identity_HX = jnp.eye(own.m_BNHX.shape[-1], dtype=own.m_BNHX.dtype)
    shifted = along(own, axis, way)
    before = shifted._replace(m_BNHX=jnp.where(place == 0, identity_HX, shifted.m_BNHX))
    for distance in (1 << n for n in range((R - 1).bit_length())):
        longer = before.after(along(before, axis, way * distance))
        choose = functools.partial(jnp.where, place >= distance)
        before = jax.tree.map(choose, longer, before)
    return before, own.after(before)


def _product(a_BNHX, b_BNXP):
    return jnp.einsum("BNHX,BNXP->BNHP", a_BNHX, b_BNXP, precision=_PRECISE)

"""Runs native hybrid attention over rows that lie on several ranks.

What a chunk of tokens does to the slots is an affine map with a diagonal, S -> D S + A: cheap to
make, to send and to compose. With the slots that enter it, and with the tokens that still stand in
the window, a chunk is computed as on one device.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from hydrahead_jax.context.halo import before
from hydrahead_jax.context.order import Order
from hydrahead_jax.context.passing import pass_states
from hydrahead_jax.context.ranks import chunks_of, vary_over, whole
from pallas_kernels import native_hybrid_attention
from pallas_kernels.gated_delta.gates import reset_log_decay
from pallas_kernels.gated_delta.segments import state_runs
from pallas_kernels.slot_attention.state import SlotState, empty_state
from pallas_kernels.slot_attention.writes import make_writes


def context_native_hybrid(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    log_forget_BTKM: Float[Array, "B T K M"],
    *,
    axis: str,
    order: Order,
    window: int,
    segment_ids_BT: Int[Array, "B T"],
    starts_BT: Bool[Array, "B T"],
    rotated: tuple[Float[Array, "B T N H"], Float[Array, "B T K H"]] | None = None,
    kv_head_of_query: tuple[int, ...] | None = None,
    sinks: bool = True,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"], Float[Array, "B T N"]]:
    """Runs `native_hybrid_attention` over complete rows, inside `jax.shard_map`; differentiable.

    Every chunk receives the `window` tokens before it, and log2(R) times M x (2H + 1) numbers per
    KV head. `jax.checkpoint` policies know the latter as "slot_attention_states".

    Args:
      q_BTNH: this rank's tokens, as are all arrays with a T.
      axis: the mesh axis that the tokens lie over.
      order: the order in which the tokens lie over it.
      starts_BT: true at the first token of every document but the row's first.

    Other arguments as `native_hybrid_attention`.

    Returns:
      The output of this rank's tokens, and the log-sum-exps over the slots and over the window.

    Raises:
      ValueError: a rank's chunk is shorter than the window, or as `native_hybrid_attention`.
    """
    dtype = jnp.promote_types(v_BTKH.dtype, jnp.float32)
    log_forget_BTKM = jnp.maximum(log_forget_BTKM.astype(dtype), reset_log_decay(dtype))
    inputs = ((q_BTNH, k_BTKH, v_BTKH, log_forget_BTKM), rotated or (q_BTNH, k_BTKH))
    trees = vary_over(axis, *inputs, segment_ids_BT, starts_BT)
    (q, k, v, log_forget), turned, ids, starts = jax.tree.map(lambda x: chunks_of(x, order), trees)
    _check_length(ids.shape[2], window)
    ends = jax.tree.map(
        lambda x_XBC: x_XBC[:, :, x_XBC.shape[2] - window :], (k, v, log_forget, turned[1], ids)
    )
    halo = before(jax.tree.map(lambda x_XBW: jnp.zeros_like(x_XBW[0]), ends), ends, axis)

    X, B = ids.shape[:2]
    rows = lambda tree: jax.tree.map(lambda x: x.reshape(X * B, *x.shape[2:]), tree)
    tokens, ids, halo = rows((k, v, log_forget)), rows(ids), rows(halo)
    state, own_run_B, runs_BS = _waiting(tokens, ids, halo)
    goes_on_B = ~jnp.take_along_axis(rows(starts), _first(ids), axis=1)[:, 0]
    own = _map_of(tokens, ids, state, sinks)
    same_B = goes_on_B & (runs_BS[:, -1:] == own_run_B)[:, 0]
    own = own._replace(
        keep_BKM1=jnp.where(same_B[:, None, None, None], own.keep_BKM1, 0.0),
        keep_B=same_B.astype(dtype),
    )
    entering = _entering(own, X, axis)
    enters = lambda x: jnp.where(goes_on_B.reshape(-1, *[1] * (x.ndim - 1)), x, 0.0)
    k_slots_BKMH, v_slots_BKMH = jnp.split(enters(entering.add_BKMX), 2, axis=-1)
    found = native_hybrid_attention(
        rows(q),
        *tokens,
        window=window,
        rotated=(rows(turned[0]), jnp.concatenate([halo[3], rows(turned[1])], axis=1)),
        kv_head_of_query=kv_head_of_query,
        state=state._replace(
            k_slots_BKMH=k_slots_BKMH,
            v_slots_BKMH=v_slots_BKMH,
            written_B=enters(entering.add_B) > 0,
        ),
        segment_ids_BT=ids,
        sinks=sinks,
    )
    results = (found.out_BTNH, found.slots_lse_BTN, found.window_lse_BTN)
    return tuple(whole(x.reshape(X, B, *x.shape[1:])) for x in results)


class _Map(NamedTuple):
    """Carries what tokens do to slots, keys beside values: x -> keep x + add.

    The last two say the same of whether the slots hold a token: above 0 is true.
    """

    keep_BKM1: jax.Array
    add_BKMX: jax.Array
    keep_B: jax.Array
    add_B: jax.Array


def _apply(later: _Map, earlier: _Map) -> _Map:
    return _Map(
        later.keep_BKM1 * earlier.keep_BKM1,
        later.keep_BKM1 * earlier.add_BKMX + later.add_BKMX,
        later.keep_B * earlier.keep_B,
        later.keep_B * earlier.add_B + later.add_B,
    )


def _entering(own: _Map, chunks: int, axis: str) -> _Map:
    """Returns the slots that enter each chunk, as the `add` of a map."""
    parts = jax.tree.map(lambda x: x.reshape(chunks, -1, *x.shape[1:]), own)
    maps = [jax.tree.map(lambda x, i=i: x[i], parts) for i in range(chunks)]
    one = lambda x, y: (jnp.ones(x.shape[1:], x.dtype), jnp.zeros(y.shape[1:], y.dtype))
    identity = _Map(*one(*parts[:2]), *one(*parts[2:]))
    entering, _ = pass_states(
        maps, identity, axis, identity=identity, apply=_apply, name="slot_attention_states"
    )
    return jax.tree.map(lambda *x: jnp.concatenate(x), *entering)


def _map_of(tokens, ids_BT, state: SlotState, sinks: bool) -> _Map:
    """Returns what a chunk does to the slots of its first document."""
    writes, after = make_writes(*tokens, state, ids_BT, sinks=sinks, row_goes_on=True)
    log_decay_BTKM, share_BTKM = writes.log_decay_BTKM, writes.share_BTKM
    later_BTKM = jnp.cumsum(log_decay_BTKM[:, :0:-1], axis=1)[:, ::-1]
    weight_BTKM = jnp.exp(jnp.pad(later_BTKM, ((0, 0), (0, 1), (0, 0), (0, 0)))) * share_BTKM
    kv_BTKX = jnp.concatenate([writes.k_BTKH, writes.v_BTKH], axis=-1).astype(weight_BTKM.dtype)
    precise = jax.lax.Precision.HIGHEST
    return _Map(
        keep_BKM1=jnp.exp(jnp.sum(log_decay_BTKM, axis=1))[..., None],
        add_BKMX=jnp.einsum("BTKM,BTKX->BKMX", weight_BTKM, kv_BTKX, precision=precise),
        keep_B=jnp.ones(len(ids_BT), weight_BTKM.dtype),
        add_B=after.written_B.astype(weight_BTKM.dtype),
    )


def _waiting(tokens, ids_BT, halo):
    """Returns the state before a chunk with empty slots, its first run, and the runs of S tokens.

    S counts the halo and the chunk. Tokens of the halo wait if they are of the chunk's first
    document.
    """
    k_BWKH, v_BWKH, log_forget_BWKM, _, ids_BW = halo
    runs_BS = state_runs(jnp.concatenate([ids_BW, ids_BT], axis=1))
    window = ids_BW.shape[1]
    own_run_B1 = jnp.take_along_axis(runs_BS, window + _first(ids_BT), axis=1)
    state = empty_state(*tokens, window)._replace(
        k_waiting_BWKH=k_BWKH,
        v_waiting_BWKH=v_BWKH,
        log_forget_waiting_BWKM=log_forget_BWKM,
        waits_BW=(ids_BW != 0) & (runs_BS[:, :window] == own_run_B1),
    )
    return state, own_run_B1, runs_BS


def _first(ids_BT):
    """Returns the place of a chunk's first token that is not padding, 0 where all are, [B, 1]."""
    return jnp.argmax(ids_BT != 0, axis=1, keepdims=True)


def _check_length(length: int, window: int) -> None:
    if length < window:
        raise ValueError(
            f"chunks of {length} tokens; a window of {window} over several ranks needs at least "
            f"{window}"
        )

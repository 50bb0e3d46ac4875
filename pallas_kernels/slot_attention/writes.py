"""Says what each step writes to the slots, so that kernels need neither shift nor segments.

The token written at step t stands `shift` positions before: it leaves the window there. The first
step of a segment forgets what came before by a decay that rounds to zero.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.gated_delta.gates import reset_log_decay
from pallas_kernels.gated_delta.segments import state_runs
from pallas_kernels.slot_attention.share import written_share
from pallas_kernels.slot_attention.state import SlotState


class Writes(NamedTuple):
    """Carries what each step does to the slots.

    Attributes:
      k_BTKH: keys that are written; where none is, any: their share is 0.
      v_BTKH: values that are written, likewise.
      log_forget_BTKM: log of the share that the slots keep beside the written token, at most 0, and
        0 where none is written.
      starts_BT: whether the step is the first of a segment, which forgets what came before.
      seen_BT: whether the query of the step sees the slots.
    """

    k_BTKH: jax.Array
    v_BTKH: jax.Array
    log_forget_BTKM: jax.Array
    starts_BT: jax.Array
    seen_BT: jax.Array

    @property
    def log_decay_BTKM(self) -> jax.Array:
        """Log of the share that the slots keep, at most 0."""
        reset = reset_log_decay(self.log_forget_BTKM.dtype)
        return jnp.where(self.starts_BT[..., None, None], reset, self.log_forget_BTKM)

    @property
    def share_BTKM(self) -> jax.Array:
        """Share of the written token in the new slots, 0 where none is written."""
        return written_share(self.log_forget_BTKM)


def make_writes(
    k_BTKH,
    v_BTKH,
    log_forget_BTKM,
    state: SlotState,
    segment_ids_BT,
    *,
    sinks: bool,
    row_goes_on: bool = False,
) -> tuple[Writes, SlotState]:
    """Returns the writes of all steps, and `state` with what waits after the last token.

    The slots of the returned state are the old ones.

    Args:
      row_goes_on: other tokens follow, so padding at the end takes up positions too.
    """
    T = segment_ids_BT.shape[1]
    real_BT, runs_BT = segment_ids_BT != 0, state_runs(segment_ids_BT)
    is_place_BT = jnp.ones_like(real_BT) if row_goes_on else real_BT
    last_B1 = jnp.max(jnp.where(is_place_BT, jnp.arange(T), -1), axis=1, keepdims=True)
    starts_BT = jnp.diff(runs_BT, axis=1, prepend=0) > 0

    tokens = map(_side_by_side, (k_BTKH, v_BTKH, log_forget_BTKM))
    positions = _Positions.join(state, *tokens, real_BT, runs_BT)
    leaving = jax.tree.map(lambda x: x[:, :T], positions)
    written_BT = leaving.real & (leaving.run == runs_BT) & (jnp.arange(T) <= last_B1)
    held_BT = _held(written_BT, starts_BT, state.written_B)
    log_forget_BTD = jnp.where(written_BT[..., None], leaving.log_forget, 0.0)
    K = k_BTKH.shape[2]
    heads = lambda x: x.reshape(*x.shape[:2], K, x.shape[2] // K)
    writes = Writes(
        k_BTKH=heads(leaving.k),
        v_BTKH=heads(leaving.v),
        log_forget_BTKM=heads(log_forget_BTD),
        starts_BT=starts_BT,
        seen_BT=real_BT if sinks else real_BT & held_BT,
    )
    after_BW = last_B1 + 1 + jnp.arange(state.waits_BW.shape[1])
    take = lambda x: jnp.take_along_axis(
        x, after_BW.reshape(*after_BW.shape, *[1] * (x.ndim - 2)), 1
    )
    waiting = jax.tree.map(take, positions)
    return writes, state._replace(
        written_B=held_BT[:, -1],
        k_waiting_BWKH=heads(waiting.k),
        v_waiting_BWKH=heads(waiting.v),
        log_forget_waiting_BWKM=heads(waiting.log_forget),
        waits_BW=waiting.real & (waiting.run == runs_BT[:, -1:]),
    )


def _side_by_side(x):
    """Puts heads side by side, as projections write them: a TPU would copy them apart."""
    return jax.lax.collapse(x, 2)


class _Positions(NamedTuple):
    """Holds the positions that waited before the first token, then those of the tokens.

    Heads lie side by side.
    """

    k: jax.Array
    v: jax.Array
    log_forget: jax.Array
    real: jax.Array
    run: jax.Array

    @classmethod
    def join(cls, state: SlotState, *tokens) -> "_Positions":
        first_run_BW = jnp.zeros_like(state.waits_BW, tokens[-1].dtype)
        waiting = (*map(_side_by_side, state[3:6]), state.waits_BW, first_run_BW)
        pairs = zip(waiting, tokens, strict=True)
        return cls(*(jnp.concatenate(pair, axis=1) for pair in pairs))


def _held(written_BT, starts_BT, before_B):
    """Says at which steps the slots hold a token of the step's segment."""
    times_T = jnp.arange(written_BT.shape[1])
    before_B1 = jnp.where(before_B, -1, -2)[:, None]
    last_write_BT = jax.lax.cummax(jnp.where(written_BT, times_T, before_B1), axis=1)
    start_BT = jax.lax.cummax(jnp.where(starts_BT, times_T, -1), axis=1)
    return last_write_BT >= start_BT

"""Defines the public functions of gated slot attention."""

from typing import Literal

import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.attention.arguments import checked_heads
from pallas_kernels.dispatch import Choice, Op
from pallas_kernels.gated_delta.gates import reset_log_decay
from pallas_kernels.slot_attention.chunked import slot_attention_chunked
from pallas_kernels.slot_attention.gpu.op import slot_attention_gpu
from pallas_kernels.slot_attention.problem import Problem
from pallas_kernels.slot_attention.reference import (
    slot_attention_reference,
    slot_attention_step_reference,
)
from pallas_kernels.slot_attention.state import SlotState, empty_state
from pallas_kernels.slot_attention.tpu.blocks import TpuBlocks
from pallas_kernels.slot_attention.tpu.op import slot_attention_tpu

SlotAttentionImplementation = Literal["tpu", "gpu", "chunked", "reference"]
SlotStepImplementation = Literal["reference"]

_slot_attention = Op("slot_attention")
_slot_attention.register("tpu", slot_attention_tpu, blocks=TpuBlocks)
_slot_attention.register("gpu", slot_attention_gpu)
_slot_attention.register("chunked", slot_attention_chunked)
_slot_attention.register("reference", slot_attention_reference)

_slot_attention_step = Op("slot_attention_step")
_slot_attention_step.register("reference", slot_attention_step_reference)


def slot_attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    log_forget_BTKM: Float[Array, "B T K M"],
    *,
    shift: int,
    kv_head_of_query: tuple[int, ...] | None = None,
    state: SlotState | None = None,
    segment_ids_BT: Int[Array, "B T"] | None = None,
    scale: float | None = None,
    sinks: bool = True,
    implementation: Choice[SlotAttentionImplementation] = None,
    blocks: TpuBlocks | None = None,
    interpret=False,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"], SlotState]:
    """Attends to M slots, into which a gated recurrence writes the tokens before a window.

        alpha = exp(log_forget_j);  j = t - shift
        K <- alpha K + (1 - alpha) k_j^T;   V <- alpha V + (1 - alpha) v_j^T     (slot by slot)
        out = softmax(scale q K^T) V;   lse = log sum exp(scale q K^T)

    Gated slot attention (arXiv 2409.07146) with the token shift of Native Hybrid Attention (arXiv
    2510.07019): the slots hold what a window of `shift` tokens, the present one included, does not
    see. A step writes before it reads. Merged by `lse` with attention over the window, both are one
    softmax. Differentiable in every floating-point argument, the state included, and through all
    results.

    Args:
      q_BTNH: queries. The window's rotary embedding has no place here.
      k_BTKH: keys, without rotary embedding.
      v_BTKH: values.
      log_forget_BTKM: log of alpha for each slot, at most 0; below -128 it counts as -128, which
        already forgets everything.
      shift: positions that a token waits before it is written; 0 writes it at once.
      kv_head_of_query: as in `attention`.
      state: slots and waiting positions before the first token; nothing if None. It belongs to the
        segment of the first token that is not padding.
      segment_ids_BT: a change of id empties the slots, and tokens of another segment are not
        written. 0 is padding: it is never written, its output is zero and its log-sum-exp -inf. It
        takes up a position, but for padding after the last token.
      scale: factor of the logits; 1 / sqrt(H) if None.
      sinks: empty slots count as keys with logit 0 and value 0, as in the paper. False: a query
        sees the slots only once a token of its segment was written.
      implementation: "tpu", "gpu" (Pallas kernels), "chunked" (plain JAX), "reference" (sequential,
        float32), or None for the best that accepts the arguments, logged once. A sequence of names
        tries these in order.
      blocks: block sizes of "tpu", in place of its own choice; the others refuse them.
      interpret: as in `attention`.

    Returns:
      The output in the dtype of v, the float32 log-sum-exp, and the state after the last token that
      is not padding. Output and log-sum-exp are known to the policies of `jax.checkpoint` as
      "slot_attention_out". A query that sees no slot has output 0 and log-sum-exp -inf.

    Raises:
      ValueError: heads, shift or state do not fit, or `implementation` is unknown.
      NotImplementedError: the named implementation does not take these arguments or this machine.
    """
    B, T, N, H = q_BTNH.shape
    heads = checked_heads(kv_head_of_query, N, k_BTKH.shape[2])
    dtype = jnp.promote_types(v_BTKH.dtype, jnp.float32)
    reset = reset_log_decay(dtype)
    log_forget_BTKM = jnp.maximum(log_forget_BTKM.astype(dtype), reset)
    tokens = (q_BTNH, k_BTKH, v_BTKH, log_forget_BTKM)
    if segment_ids_BT is None:
        segment_ids_BT = jnp.ones((B, T), jnp.int32)
    else:
        real_BT11 = (segment_ids_BT != 0)[..., None, None]
        tokens = tuple(jnp.where(real_BT11, x, jnp.zeros((), x.dtype)) for x in tokens)
    out_BTNH, lse_BTN, state = _slot_attention(
        *tokens,
        _checked_state(state, *tokens[1:], shift),
        segment_ids_BT,
        problem=Problem(
            kv_head_of_query=heads,
            scale=H**-0.5 if scale is None else scale,
            sinks=sinks,
            interpret=interpret,
        ),
        implementation=implementation,
        blocks=blocks,
    )
    return *checkpoint_name((out_BTNH, lse_BTN), "slot_attention_out"), state


def slot_attention_step(
    q_BNH: Float[Array, "B N H"],
    k_BKH: Float[Array, "B K H"],
    v_BKH: Float[Array, "B K H"],
    log_forget_BKM: Float[Array, "B K M"],
    state: SlotState,
    *,
    kv_head_of_query: tuple[int, ...] | None = None,
    real_B: Bool[Array, "B"] | None = None,
    scale: float | None = None,
    sinks: bool = True,
    implementation: Choice[SlotStepImplementation] = None,
    interpret=False,
) -> tuple[Float[Array, "B N H"], Float[Array, "B N"], SlotState]:
    """Runs `slot_attention` for one token of the state's segment, the decode step.

    Args:
      real_B: False for rows whose token is padding; it takes up a position all the same.

    Other arguments, results and errors as `slot_attention`; the shift is that of the state.
    """
    B, N, H = q_BNH.shape
    dtype = jnp.promote_types(v_BKH.dtype, jnp.float32)
    return _slot_attention_step(
        q_BNH,
        k_BKH,
        v_BKH,
        jnp.maximum(log_forget_BKM.astype(dtype), reset_log_decay(dtype)),
        state,
        jnp.ones(B, bool) if real_B is None else real_B,
        problem=Problem(
            kv_head_of_query=checked_heads(kv_head_of_query, N, k_BKH.shape[1]),
            scale=H**-0.5 if scale is None else scale,
            sinks=sinks,
            interpret=interpret,
        ),
        implementation=implementation,
    )


def _checked_state(state: SlotState | None, k, v, log_forget, shift: int) -> SlotState:
    if shift < 0:
        raise ValueError(f"shift={shift}; a token waits 0 positions or more")
    empty = empty_state(k, v, log_forget, shift)
    if state is None:
        return empty
    for name, given, wanted in zip(SlotState._fields, state, empty, strict=True):
        if given.shape != wanted.shape:
            raise ValueError(
                f"state.{name} has shape {given.shape} and these arguments need {wanted.shape}"
            )
    return SlotState(*(x.astype(y.dtype) for x, y in zip(state, empty, strict=True)))

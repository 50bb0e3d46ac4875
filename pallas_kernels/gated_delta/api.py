"""Defines the public functions of the gated delta rule."""

import functools
from typing import Literal

import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from pallas_kernels.dispatch import Choice, Op
from pallas_kernels.gated_delta.chunked import ChunkedBlocks, gated_delta_chunked
from pallas_kernels.gated_delta.gates import effective_gates
from pallas_kernels.gated_delta.gpu.op import gated_delta_gpu
from pallas_kernels.gated_delta.gpu.step import gated_delta_step_gpu
from pallas_kernels.gated_delta.problem import problem_of
from pallas_kernels.gated_delta.reference import gated_delta_reference, gated_delta_step_reference
from pallas_kernels.gated_delta.tpu.blocks import TpuBlocks
from pallas_kernels.gated_delta.tpu.op import gated_delta_tpu
from pallas_kernels.gated_delta.tpu.step import gated_delta_step_tpu


def _segments_by_gates(implementation):
    """Makes an implementation without segments take segment ids."""

    @functools.wraps(implementation)
    def call(q, k, v, log_decay_BTN, beta_BTN, state_BNHP, segment_ids_BT=None, **kwargs):
        gates = effective_gates(log_decay_BTN, beta_BTN, segment_ids_BT)
        out_BTNP, state_BNHP = implementation(q, k, v, *gates, state_BNHP, **kwargs)
        if segment_ids_BT is not None:
            real_BT11 = (segment_ids_BT != 0)[..., None, None]
            out_BTNP = jnp.where(real_BT11, out_BTNP, jnp.zeros((), out_BTNP.dtype))
        return out_BTNP, state_BNHP

    return call


GatedDeltaImplementation = Literal["tpu", "gpu", "chunked", "reference"]
StepImplementation = Literal["tpu", "gpu", "reference"]

_gated_delta = Op("gated_delta")
_gated_delta.register("tpu", _segments_by_gates(gated_delta_tpu), blocks=TpuBlocks)
_gated_delta.register("gpu", _segments_by_gates(gated_delta_gpu))
_gated_delta.register("chunked", _segments_by_gates(gated_delta_chunked), blocks=ChunkedBlocks)
_gated_delta.register("reference", gated_delta_reference)

_gated_delta_step = Op("gated_delta_step")
_gated_delta_step.register("tpu", gated_delta_step_tpu)
_gated_delta_step.register("gpu", gated_delta_step_gpu)
_gated_delta_step.register("reference", gated_delta_step_reference)


def gated_delta(
    q_BTKH: Float[Array, "B T K H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTNP: Float[Array, "B T N P"],
    log_decay_BTN: Float[Array, "B T N"],
    beta_BTN: Float[Array, "B T N"],
    *,
    initial_state_BNHP: Float[Array, "B N H P"] | None = None,
    segment_ids_BT: Int[Array, "B T"] | None = None,
    scale: float | None = None,
    implementation: Choice[GatedDeltaImplementation] = None,
    blocks: TpuBlocks | ChunkedBlocks | None = None,
    interpret=False,
) -> tuple[Float[Array, "B T N P"], Float[Array, "B N H P"]]:
    """Runs the gated delta rule over a sequence.

        S <- exp(log_decay) S;   S <- S + beta k (v - S^T k)^T;   o = scale * S^T q

    The rule of arXiv 2412.06464, Eq 10, with the state stored transposed (keys by values).
    Differentiable in every array argument, initial state included, and through both results.

    Args:
      q_BTKH: queries, used as given: the caller L2-normalises.
      k_BTKH: keys, also as given. N is a multiple of K: value head n reads key head n // (N / K).
      v_BTNP: values.
      log_decay_BTN: at most 0. Below -128 it counts as -128, which already forgets everything.
      beta_BTN: write strength, in [0, 2].
      initial_state_BNHP: float32 state before the first token; zero if None.
      segment_ids_BT: a change of id resets the state. 0 is padding: it neither reads nor writes,
        its output is zero, and it does not end a segment. The initial state belongs to the
        segment of the first token that is not padding.
      scale: factor of the output; 1 / sqrt(H) if None.
      implementation: "tpu" and "gpu" (Pallas kernels), "chunked" (plain JAX), "reference"
        (sequential, float32), or None for the best that accepts the arguments, logged once. A
        sequence of names tries these in order.
      blocks: block sizes of one implementation, in place of its own choice: `tpu.blocks.TpuBlocks`
        or `chunked.ChunkedBlocks`. Every other one refuses them.
      interpret: runs the Pallas kernels of a named implementation in an interpreter, on any
        machine: True, or `pltpu.InterpretParams()` or `plgpu.InterpretGPUParams()`, which also
        find races. Inside `jax.shard_map` use True with `check_vma=False`.

    Returns:
      The output in the dtype of v, and the float32 state after the last non-padding token, both
      known to the policies of `jax.checkpoint` as "gated_delta_out".

    Raises:
      ValueError: N is not a multiple of K, `blocks` do not fit, or `implementation` is unknown.
      NotImplementedError: the named implementation does not take these arguments or this machine.
    """
    _check_groups(k_BTKH.shape[2], v_BTNP.shape[2])
    dtype = jnp.promote_types(v_BTNP.dtype, jnp.float32)
    B, _, N, P = v_BTNP.shape
    H = q_BTKH.shape[-1]
    if initial_state_BNHP is None:
        initial_state_BNHP = jnp.zeros((B, N, H, P), dtype)
    results = _gated_delta(
        q_BTKH,
        k_BTKH,
        v_BTNP,
        log_decay_BTN.astype(dtype),
        beta_BTN.astype(dtype),
        initial_state_BNHP.astype(dtype),
        *([] if segment_ids_BT is None else [segment_ids_BT]),
        problem=problem_of(k_BTKH, v_BTNP, scale=scale, interpret=interpret),
        implementation=implementation,
        blocks=blocks,
    )
    return checkpoint_name(results, "gated_delta_out")


def gated_delta_step(
    q_BKH: Float[Array, "B K H"],
    k_BKH: Float[Array, "B K H"],
    v_BNP: Float[Array, "B N P"],
    log_decay_BN: Float[Array, "B N"],
    beta_BN: Float[Array, "B N"],
    state_BNHP: Float[Array, "B N H P"],
    *,
    scale: float | None = None,
    implementation: Choice[StepImplementation] = None,
    interpret=False,
) -> tuple[Float[Array, "B N P"], Float[Array, "B N H P"]]:
    """Runs the gated delta rule for one token, the decode step; see `gated_delta`."""
    _check_groups(k_BKH.shape[1], v_BNP.shape[1])
    dtype = jnp.promote_types(v_BNP.dtype, jnp.float32)
    return _gated_delta_step(
        q_BKH,
        k_BKH,
        v_BNP,
        log_decay_BN.astype(dtype),
        beta_BN.astype(dtype),
        state_BNHP.astype(dtype),
        scale=q_BKH.shape[-1] ** -0.5 if scale is None else scale,
        implementation=implementation,
        interpret=interpret,
    )


def _check_groups(key_heads: int, value_heads: int) -> None:
    if value_heads % key_heads:
        raise ValueError(f"{value_heads} value heads are not a multiple of {key_heads} key heads")

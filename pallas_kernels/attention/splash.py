"""Wraps JAX's own splash attention in the signature of our implementations."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from pallas_kernels.attention.no_gradient import without_gradient
from pallas_kernels.attention.problem import Problem
from pallas_kernels.attention.visibility import Segments, Visibility
from pallas_kernels.target import target

LANES = 128
HEAD_SIZES = (64, 128, 256)
_NOTHING_SEEN = -1e38  # splash's log-sum-exp of such a row is about -2.4e38, or -inf


def attention_splash(
    q_BTNH, k_BSKH, v_BSKH, *, q_start, segments: Segments | None, problem: Problem
):
    """Returns `api.attention`'s output [B, T, N, H] and log-sum-exp [B, T, N].

    Splash has no scale: scale * q is rounded to bf16, so scores of 1e4 are wrong by tens. Its
    forward runs twice where gradients and the log-sum-exp are asked for, or where some query sees
    nothing.

    Raises:
      NotImplementedError: splash does not take the device, dtype, length or head size; q_start is
        traced; the map of heads is irregular; there is no score at all; or a gradient goes through
        the log-sum-exp.
    """
    _check(q_BTNH, k_BSKH, problem)
    make = kernel_maker(problem, target(q_BTNH).device_kind)
    scaled = (q_BTNH.astype(jnp.float32) * problem.scale).astype(q_BTNH.dtype)
    heads_first = (x.swapaxes(1, 2) for x in (scaled, k_BSKH, v_BSKH))
    ids = None if segments is None else splash.SegmentIds(segments.queries_BT, segments.keys_BS)
    out_BNTH, lse_BNT = _attend(make, *heads_first, ids)
    out_BTNH, lse_BTN = out_BNTH.swapaxes(1, 2), lse_BNT.swapaxes(1, 2)
    if segments is not None or not _all_see(problem):
        seen_BTN = lse_BTN > _NOTHING_SEEN
        if segments is not None:
            seen_BTN &= (segments.queries_BT != 0)[..., None]
        out_BTNH = jnp.where(seen_BTN[..., None], out_BTNH, jnp.zeros((), out_BTNH.dtype))
        lse_BTN = jnp.where(seen_BTN, lse_BTN, -jnp.inf)
    return out_BTNH, without_gradient("splash", lse_BTN, q_BTNH, k_BSKH, v_BSKH)


def kernel_maker(problem: Problem, device_kind: str):
    """Returns a function that makes the kernel, with `save_residuals` or without."""
    T, S = problem.T, problem.S
    mask = _mask(problem.visibility, T, S, problem.q_start)
    return functools.partial(
        splash.make_splash_mha,
        splash.MultiHeadMask([mask] * len(problem.kv_head_of_query)),
        block_sizes=_block_sizes(T, S, problem.H, device_kind),
        head_shards=1,
        q_seq_shards=1,
        interpret=bool(problem.interpret),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(make, q_BNTH, k_BKSH, v_BKSH, ids):
    out_BNTH, (lse_BNT,) = _kernel(make, True)(q_BNTH, k_BKSH, v_BKSH, ids)
    return out_BNTH, lse_BNT


def _attend_forward(make, q_BNTH, k_BKSH, v_BKSH, ids):
    """Computes the attention by the kernel without log-sum-exp: only that one has a gradient."""
    call = lambda q, k, v: _kernel(make, False)(q, k, v, ids)
    out_BNTH, pull = jax.vjp(call, q_BNTH, k_BKSH, v_BKSH)
    return (out_BNTH, _attend(make, q_BNTH, k_BKSH, v_BKSH, ids)[1]), pull


def _attend_backward(make, pull, cotangents):
    return *pull(cotangents[0]), None


_attend.defvjp(_attend_forward, _attend_backward)


def _kernel(make, save_residuals: bool):
    kernel = make(save_residuals=save_residuals)
    return jax.vmap(lambda q, k, v, ids: kernel(q, k, v, ids))


def _mask(visibility: Visibility, T: int, S: int, q_start: int):
    if not visibility.causal:
        return splash.FullMask((T, S))
    if visibility.window is None:
        return splash.CausalMask((T, S), offset=q_start)
    return splash.LocalMask((T, S), (visibility.window - 1, 0), offset=q_start)


def _all_see(problem: Problem) -> bool:
    """Says whether every query sees a key, by position."""
    q_start, visibility = problem.q_start, problem.visibility
    behind = q_start + problem.T - (visibility.window or q_start + problem.T)
    return not visibility.causal or (q_start >= 0 and behind < problem.S)


def _block_sizes(T: int, S: int, H: int, device_kind: str) -> splash.BlockSizes:
    """Returns the largest sizes that compile: fewest cycles of all tried on v6e (causal, H 128)."""
    largest = 1024 if H > LANES or device_kind.startswith("TPU v5") else 2048
    rows, columns = _divisor(T, largest), _divisor(S, largest)
    inner = _divisor(columns, min(largest // 2, 1024))
    return splash.BlockSizes(
        block_q=rows,
        block_kv=columns,
        block_kv_compute=inner,
        block_q_dkv=rows,
        block_kv_dkv=columns,
        block_kv_dkv_compute=inner,
        use_fused_bwd_kernel=True,
    )


def _divisor(length: int, largest: int) -> int:
    return next(size for size in range(largest, 0, -LANES) if length % size == 0)


def _check(q_BTNH, k_BSKH, problem: Problem) -> None:
    T, S, H = problem.T, problem.S, problem.H
    q_start, visibility = problem.q_start, problem.visibility
    device = target(q_BTNH)
    if not problem.interpret and device.platform != "tpu":
        raise NotImplementedError(
            f"the device is {device.device_kind}; splash runs on TPU, or anywhere with "
            "interpret=True"
        )
    if q_BTNH.dtype != jnp.bfloat16 or k_BSKH.dtype != jnp.bfloat16:
        raise NotImplementedError(f"q is {q_BTNH.dtype}; splash multiplies in bfloat16 only")
    if H not in HEAD_SIZES:
        raise NotImplementedError(f"the head dimension is {H}; one of {HEAD_SIZES} is accepted")
    if T % LANES or S % LANES:
        raise NotImplementedError(f"{T} queries and {S} keys; multiples of {LANES} are accepted")
    if q_start is None:
        raise NotImplementedError("q_start is traced; splash makes its mask from an int")
    if not problem.is_regular:
        raise NotImplementedError(
            f"kv_head_of_query={problem.kv_head_of_query} is irregular; splash takes query head n "
            "with KV head n // (N / K) only"
        )
    first, last = q_start, q_start + T - 1
    lowest = first - (visibility.window or first + 1) + 1
    if visibility.causal and (last < 0 or lowest >= S):
        raise NotImplementedError(
            f"no query sees a key with q_start={q_start}; splash needs one that does"
        )

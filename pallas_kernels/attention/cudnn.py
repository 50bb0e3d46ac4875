"""Wraps cuDNN's attention, as JAX calls it, in the signature of our implementations."""

import jax
import jax.numpy as jnp

from pallas_kernels.attention.no_gradient import without_gradient
from pallas_kernels.attention.problem import Problem
from pallas_kernels.attention.visibility import Segments
from pallas_kernels.target import target

LARGEST_HEAD = 256


def attention_cudnn(
    q_BTNH, k_BSKH, v_BSKH, *, q_start, segments: Segments | None, problem: Problem
):
    """Returns `api.attention`'s output [B, T, N, H] and log-sum-exp [B, T, N].

    JAX rounds cuDNN's log-sum-exp to the dtype of q.

    Raises:
      NotImplementedError: cuDNN does not take the device, dtype or head size; the map of heads is
        irregular; there are segments; the queries do not start at the first key; cuDNN is known to
        be wrong in this case; or a gradient goes through the log-sum-exp.
    """
    _check_arrays(q_BTNH, problem)
    _check_mask(problem)
    window = problem.visibility.window
    out_BTNH, lse_BTN = jax.nn.dot_product_attention(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        scale=problem.scale,
        is_causal=problem.visibility.causal,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
        return_residual=True,
    )
    lse_BTN = lse_BTN.astype(jnp.float32)
    return out_BTNH, without_gradient("cuDNN in JAX", lse_BTN, q_BTNH, k_BSKH, v_BSKH)


def _check_arrays(q_BTNH, problem: Problem) -> None:
    H, device = problem.H, target(q_BTNH)
    if problem.interpret or device.platform != "gpu":
        raise NotImplementedError(
            f"the device is {device.device_kind}; cuDNN runs on NVIDIA GPUs and has no interpreter"
        )
    if q_BTNH.dtype not in (jnp.bfloat16, jnp.float16):
        raise NotImplementedError(f"q is {q_BTNH.dtype}; bfloat16 and float16 are accepted")
    if H % 8 or H > LARGEST_HEAD:
        raise NotImplementedError(
            f"the head dimension is {H}; multiples of 8 up to {LARGEST_HEAD} are accepted"
        )
    if not problem.is_regular:
        raise NotImplementedError(
            f"kv_head_of_query={problem.kv_head_of_query} is irregular; cuDNN takes query head n "
            "with KV head n // (N / K) only, so KV heads would have to be repeated in memory"
        )
    if problem.segments:
        raise NotImplementedError("segments would need a mask of T x S for cuDNN; none is accepted")


def _check_mask(problem: Problem) -> None:
    """Refuses masks that cuDNN lacks, and the NaN of pytorch 196678 and NeMo Automodel 3232."""
    T, S, H, visibility = problem.T, problem.S, problem.H, problem.visibility
    if visibility.causal and problem.q_start != 0:
        raise NotImplementedError("q_start is not 0; cuDNN's causal mask starts at the first key")
    if visibility.window is not None and T > S:
        raise NotImplementedError(
            f"{T} queries, {S} keys and a window: some queries see nothing, which cuDNN leaves open"
        )
    if visibility.window is not None and H > 128:
        raise NotImplementedError(
            f"a window with head dimension {H}; cuDNN is known to give NaN above 128"
        )
    if visibility.causal and 64 in (T % 128, S % 128):
        raise NotImplementedError(
            f"{T} queries and {S} keys under a mask; cuDNN is known to give NaN in the gradient of "
            "q at lengths that leave 64 when divided by 128"
        )

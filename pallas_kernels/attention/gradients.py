"""Defines the public function for gradients of attention by parts of the keys."""

from jaxtyping import Array, Float, Int

from pallas_kernels.attention.api import DecodeImplementation as GradientsImplementation
from pallas_kernels.attention.arguments import checked
from pallas_kernels.attention.chunked_gradients import (
    attention_gradients_chunked,
    attention_gradients_reference,
)
from pallas_kernels.attention.gpu.op import attention_gradients_gpu
from pallas_kernels.attention.tpu.gradients import attention_gradients_tpu
from pallas_kernels.dispatch import Choice, Op

_attention_gradients = Op("attention_gradients")
_attention_gradients.register("tpu", attention_gradients_tpu)
_attention_gradients.register("gpu", attention_gradients_gpu)
_attention_gradients.register("chunked", attention_gradients_chunked)
_attention_gradients.register("reference", attention_gradients_reference)


def attention_gradients(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    out_BTNH: Float[Array, "B T N H"],
    lse_BTN: Float[Array, "B T N"],
    dout_BTNH: Float[Array, "B T N H"],
    *,
    kv_head_of_query: tuple[int, ...] | None = None,
    causal: bool = True,
    window: int | None = None,
    segment_ids_BT: Int[Array, "B T"] | None = None,
    kv_segment_ids_BS: Int[Array, "B S"] | None = None,
    q_start: int | Int[Array, ""] = 0,
    scale: float | None = None,
    implementation: Choice[GradientsImplementation] = None,
    interpret=False,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    """Computes what a part of the keys adds to the gradients of attention over all of them.

        P = exp(scale q k^T - lse)    dS = P (dout v^T - sum(out dout))
        dq = scale dS k               dk = scale dS^T q               dv = P^T dout

    The forward of the part is not needed: `out` and `lse` are those over all keys. Summed over all
    parts, dq is the gradient. The weights are only as exact as scores and lse: at 1e4, where
    numbers in float32 lie 1e-3 apart, they are off by 2e-3. `attention`, which stores maximum and
    sum apart, has no such error.

    Args:
      out_BTNH: output over all keys.
      lse_BTN: log-sum-exp over all keys, float32 or float64; -inf for queries that see nothing,
        whose gradients are 0.
      dout_BTNH: gradient of the output.
      scale: positive.

    Other arguments, implementations and errors are those of `attention`.

    Returns:
      The part's dq, dk and dv, in the dtype of q. They have no gradient of their own.
    """
    if scale is not None and scale <= 0:
        raise ValueError(f"scale={scale}; gradients by parts of the keys need a positive one")
    problem, segments = checked(
        q_BTNH,
        k_BSKH,
        kv_head_of_query=kv_head_of_query,
        causal=causal,
        window=window,
        segment_ids_BT=segment_ids_BT,
        kv_segment_ids_BS=kv_segment_ids_BS,
        q_start=q_start,
        scale=scale,
        interpret=interpret,
    )
    return _attention_gradients(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        out_BTNH,
        lse_BTN,
        dout_BTNH.astype(q_BTNH.dtype),
        q_start=q_start,
        segments=segments,
        problem=problem,
        implementation=implementation,
    )

"""Computes a short causal depthwise convolution."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def short_conv(
    x_BTNH: Float[Array, "B T N H"],
    weight_WNH: Float[Array, "W N H"],
    tail_BWNH: Float[Array, "B Wm1 N H"],
    segment_ids_BT: Int[Array, "B T"],
    tail_segment_ids_BW: Int[Array, "B Wm1"],
) -> Float[Array, "B T N H"]:
    """Computes out_t = sum over w of weight_w x_{t - (W-1) + w}, over tokens of t's segment only.

    The tail holds the W - 1 inputs before token 0. Tokens with segment id 0 give zero.
    """
    T = x_BTNH.shape[1]
    inputs = jnp.concatenate([tail_BWNH.astype(x_BTNH.dtype), x_BTNH], axis=1)
    segments = jnp.concatenate([tail_segment_ids_BW, segment_ids_BT], axis=1)
    out_BTNH = jnp.zeros_like(x_BTNH)
    for w, tap_NH in enumerate(weight_WNH.astype(x_BTNH.dtype)):
        visible_BT = (segments[:, w : w + T] == segment_ids_BT) & (segment_ids_BT != 0)
        out_BTNH += jnp.where(visible_BT[..., None, None], inputs[:, w : w + T] * tap_NH, 0)
    return out_BTNH

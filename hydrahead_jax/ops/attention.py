"""Softmax attention for any map from query heads to KV heads."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    mask_BTS: Bool[Array, "B T S"],
    kv_head_of_query: tuple[int, ...],
) -> Float[Array, "B T N H"]:
    """softmax(q k^T / sqrt(H)) v with a float32 softmax. A fully masked row gives zeros."""
    heads = jnp.array(kv_head_of_query)
    k_BSNH, v_BSNH = k_BSKH[:, :, heads], v_BSKH[:, :, heads]
    scores_BNTS = jnp.einsum("BTNH,BSNH->BNTS", q_BTNH, k_BSNH, preferred_element_type=jnp.float32)
    mask_B1TS = mask_BTS[:, None]
    scores_BNTS = jnp.where(mask_B1TS, scores_BNTS * q_BTNH.shape[-1] ** -0.5, -1e30)
    peak_BNT1 = jnp.max(scores_BNTS, axis=-1, keepdims=True)
    weights_BNTS = jnp.where(mask_B1TS, jnp.exp(scores_BNTS - peak_BNT1), 0.0)
    total_BNT1 = jnp.maximum(jnp.sum(weights_BNTS, axis=-1, keepdims=True), 1e-30)
    weights_BNTS = (weights_BNTS / total_BNT1).astype(v_BSKH.dtype)
    return jnp.einsum("BNTS,BSNH->BTNH", weights_BNTS, v_BSNH)

"""Runs the decode step of softmax attention in plain JAX, on any backend.

The cache is read in its stored order, all KV heads of a position side by side. In a row of K * H
numbers a query stands at its KV head, with zeros elsewhere. That takes K times the multiply-adds,
of which decode has few, and needs no copy of the cache in another order.
"""

import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention.problem import Problem
from pallas_kernels.attention.reference import attention_decode_reference
from pallas_kernels.attention.visibility import Segments, Visibility
from pallas_kernels.reference_gradient import with_gradient_of


def decode_reference(q_BNH, k_BSKH, v_BSKH, lengths_B, *ids, problem: Problem, blocks=None):
    """Calls `attention_decode_reference` with segments as two more arrays, or none."""
    segments = Segments(*ids) if ids else None
    return attention_decode_reference(
        q_BNH, k_BSKH, v_BSKH, lengths_B, segments=segments, problem=problem
    )


def attention_decode_chunked(
    q_BNH, k_BSKH, v_BSKH, lengths_B, *, segments: Segments | None, problem: Problem
):
    """Computes `api.attention_decode` in plain JAX."""
    return _decode(q_BNH, k_BSKH, v_BSKH, lengths_B, *(segments or ()), problem=problem)


@with_gradient_of(decode_reference)
def _decode(q_BNH, k_BSKH, v_BSKH, lengths_B, *ids, problem: Problem):
    kv_head_of_query = problem.kv_head_of_query
    dtype = jnp.promote_types(q_BNH.dtype, jnp.float32)
    B, S, K, H = k_BSKH.shape
    k_BSD, v_BSD = (x.reshape(B, S, K * H) for x in (k_BSKH, v_BSKH))
    q_BND = rows_at_heads(q_BNH, kv_head_of_query, K)
    s_BNS = problem.scale * jnp.einsum("BND,BSD->BNS", q_BND, k_BSD, preferred_element_type=dtype)
    seen_B1S = seen_by_decode(lengths_B, ids, problem.visibility, jnp.arange(S))[:, None]
    s_BNS = jnp.where(seen_B1S, s_BNS, -jnp.inf)
    peak_BN1 = jnp.max(s_BNS, axis=-1, keepdims=True)
    peak_BN1 = jnp.where(peak_BN1 == -jnp.inf, 0.0, peak_BN1)
    p_BNS = jnp.exp(s_BNS - peak_BN1)
    total_BN1 = jnp.sum(p_BNS, axis=-1, keepdims=True)
    out_BND = jnp.einsum(
        "BNS,BSD->BND", p_BNS.astype(v_BSD.dtype), v_BSD, preferred_element_type=dtype
    )
    out_BNH = own_heads(out_BND, kv_head_of_query, K) / jnp.where(total_BN1 > 0, total_BN1, 1.0)
    lse_BN = (peak_BN1 + jnp.log(total_BN1))[..., 0]
    return out_BNH.astype(q_BNH.dtype), lse_BN


def seen_by_decode(lengths_B, ids, visibility: Visibility, columns_S):
    """Says which keys the query of each row sees [B, S]."""
    seen_BS = visibility(lengths_B[:, None] - 1, columns_S)
    if ids:
        queries_B1, keys_BS = ids
        seen_BS &= (queries_B1 == keys_BS) & (queries_B1 != 0)
    return seen_BS


def rows_at_heads(q_BNH, kv_head_of_query: tuple[int, ...], K: int):
    """Puts each query at the place of its KV head, among zeros: [B, N, K * H]."""
    B, N, H = q_BNH.shape
    own_NK1 = _own(kv_head_of_query, K)[..., None]
    return jnp.where(own_NK1, q_BNH[:, :, None], jnp.zeros((), q_BNH.dtype)).reshape(B, N, K * H)


def own_heads(out_BND, kv_head_of_query: tuple[int, ...], K: int):
    """Picks from rows over all KV heads what stands at each query's own: [B, N, H]."""
    B, N, D = out_BND.shape
    own_NK1 = _own(kv_head_of_query, K)[..., None]
    return jnp.sum(jnp.where(own_NK1, out_BND.reshape(B, N, K, D // K), 0.0), axis=2)


def _own(kv_head_of_query: tuple[int, ...], K: int) -> np.ndarray:
    return np.array(kv_head_of_query)[:, None] == np.arange(K)

"""Runs the decode step of softmax attention over an encoded cache, in plain JAX."""

import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention.problem import Problem
from pallas_kernels.attention.reference import attention_decode_reference
from pallas_kernels.attention.visibility import Segments
from pallas_kernels.kv_cache.packed import PackedKV


def decode_reference(
    q_BNH, cache: PackedKV, lengths_B, segments: Segments | None, *, problem: Problem
):
    """Decodes all of the cache to float32 and calls `attention_decode_reference`."""
    k_BSKH, v_BSKH = cache.decoded(jnp.float32)
    if cache.raw is not None and cache.raw.sinks:
        segments = _without_padding(segments, cache, q_BNH.shape[0])
    return attention_decode_reference(
        q_BNH, k_BSKH, v_BSKH, lengths_B, segments=segments, problem=problem
    )


def _without_padding(segments: Segments | None, cache: PackedKV, batch: int) -> Segments:
    """Hides what lies before a row's first token, as reading the sinks apart does."""
    S = cache.shape[1]
    if segments is None:
        segments = Segments(jnp.ones((batch, 1), jnp.int32), jnp.ones((batch, S), jnp.int32))
    is_token_BS = jnp.arange(S) >= cache.raw.first_B[:, None]
    return segments._replace(keys_BS=jnp.where(is_token_BS, segments.keys_BS, 0))


def decode_chunked(
    q_BNH, cache: PackedKV, begin_B, end_B, *, segments: Segments | None, problem: Problem
):
    """Attends to encoded slots, decoded to the dtype of the queries; arguments as for kernels."""
    columns_S = jnp.arange(problem.S)
    seen_BS = (columns_S >= begin_B[:, None]) & (columns_S < end_B[:, None])
    if segments is not None:
        queries_B1, keys_BS = segments
        seen_BS &= (queries_B1 == keys_BS) & (queries_B1 != 0)
    return attend(q_BNH, *cache.stored(q_BNH.dtype), seen_BS, problem)


def attend(q_BNH, k_BKSH, v_BKSH, seen_BS, problem: Problem):
    """Attends to the keys that a row sees; output [B, N, H] and log-sum-exp [B, N] are float32."""
    B, _, H = q_BNH.shape
    queries_KR, place_N = _readers(problem.kv_head_of_query, problem.K)
    q_BKRH = q_BNH[:, queries_KR]
    s_BKRS = problem.scale * jnp.einsum(
        "BKRH,BKSH->BKRS", q_BKRH, k_BKSH, preferred_element_type=jnp.float32
    )
    s_BKRS = jnp.where(seen_BS[:, None, None], s_BKRS, -jnp.inf)
    sees_B11 = jnp.any(seen_BS, axis=1)[:, None, None]
    peak_BKR = jnp.where(sees_B11, jnp.max(s_BKRS, axis=-1), 0.0)
    p_BKRS = jnp.exp(s_BKRS - peak_BKR[..., None])
    total_BKR = jnp.where(sees_B11, jnp.sum(p_BKRS, axis=-1), 1.0)
    out_BKRH = jnp.einsum(
        "BKRS,BKSH->BKRH", p_BKRS.astype(v_BKSH.dtype), v_BKSH, preferred_element_type=jnp.float32
    )
    out_BKRH = out_BKRH / total_BKR[..., None]
    lse_BKR = jnp.where(sees_B11, peak_BKR + jnp.log(total_BKR), -jnp.inf)
    return out_BKRH.reshape(B, -1, H)[:, place_N], lse_BKR.reshape(B, -1)[:, place_N]


def _readers(kv_head_of_query: tuple[int, ...], K: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the query heads [K, R] of each KV head, filled up with head 0, and each one's place.

    Places [N] count in K times R.
    """
    readers = [[n for n, kv in enumerate(kv_head_of_query) if kv == head] for head in range(K)]
    R = max(map(len, readers))
    place_N = [kv * R + readers[kv].index(n) for n, kv in enumerate(kv_head_of_query)]
    filled = [queries + [0] * (R - len(queries)) for queries in readers]
    return np.array(filled), np.array(place_N)

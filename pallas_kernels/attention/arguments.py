"""Checks the arguments that all public functions of softmax attention share."""

from pallas_kernels.attention.problem import Problem, problem_of
from pallas_kernels.attention.visibility import Segments, Visibility


def checked(
    q_BTNH,
    k_BSKH,
    *,
    kv_head_of_query,
    causal: bool,
    window: int | None,
    segment_ids_BT,
    kv_segment_ids_BS,
    **settings,
) -> tuple[Problem, Segments | None]:
    """Returns the problem and the segments of arguments that fit together."""
    segments = checked_segments(segment_ids_BT, kv_segment_ids_BS, q_BTNH.shape[1], k_BSKH.shape[1])
    problem = problem_of(
        q_BTNH,
        k_BSKH,
        visibility=Visibility(causal=causal, window=window),
        segments=segments,
        kv_head_of_query=checked_heads(kv_head_of_query, q_BTNH.shape[2], k_BSKH.shape[2]),
        **settings,
    )
    return problem, segments


def checked_heads(kv_head_of_query, N: int, K: int) -> tuple[int, ...]:
    """Returns the KV head of each query head, that of equal groups if None."""
    if kv_head_of_query is None:
        if N % K:
            raise ValueError(
                f"{N} query heads are not a multiple of {K} KV heads; say with kv_head_of_query "
                "which KV head each reads"
            )
        return tuple(n // (N // K) for n in range(N))
    heads = tuple(int(head) for head in kv_head_of_query)
    if len(heads) != N or not set(heads) <= set(range(K)):
        raise ValueError(
            f"kv_head_of_query={heads} must name one of {K} KV heads for each of {N} query heads"
        )
    return heads


def checked_segments(segment_ids_BT, kv_segment_ids_BS, T: int, S: int) -> Segments | None:
    """Returns the segment ids of queries and keys; None if neither is given."""
    if segment_ids_BT is None:
        if kv_segment_ids_BS is not None:
            raise ValueError("kv_segment_ids_BS needs segment_ids_BT beside it")
        return None
    if kv_segment_ids_BS is None:
        if T != S:
            raise ValueError(f"{T} queries and {S} keys: segments need kv_segment_ids_BS too")
        kv_segment_ids_BS = segment_ids_BT
    return Segments(segment_ids_BT, kv_segment_ids_BS)

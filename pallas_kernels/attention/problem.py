"""Says what is known of a problem of softmax attention while it is traced."""

import dataclasses
from typing import Any

from pallas_kernels.attention.visibility import Visibility


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """Says what is known of a call of `attention` while it is traced, but for its batch.

    Attributes:
      T: queries of a row, without padding.
      S: keys of a row, without padding.
      H: head dimension.
      K: KV heads.
      dtype: that of q.
      visibility: which keys a query sees, by position.
      segments: whether there are segment ids too.
      q_start: position of query 0, None if it is traced.
      kv_head_of_query: KV head of each query head.
      scale: factor of the scores.
      interpret: as `attention` takes it.
    """

    T: int
    S: int
    H: int
    K: int
    dtype: Any
    visibility: Visibility
    segments: bool
    q_start: int | None
    kv_head_of_query: tuple[int, ...]
    scale: float
    interpret: Any = False

    def __hash__(self):
        return hash((self.T, self.S, self.q_start, self.visibility, self.kv_head_of_query))

    @property
    def is_regular(self) -> bool:
        """Returns whether query head n reads KV head n // (N / K)."""
        N, heads = len(self.kv_head_of_query), self.kv_head_of_query
        return N % self.K == 0 and heads == tuple(n // (N // self.K) for n in range(N))


def problem_of(
    q_BTNH, k_BSKH, *, visibility, segments, q_start, kv_head_of_query, scale, interpret
) -> Problem:
    """Returns the problem of queries, keys and checked settings; `scale` None is 1 / sqrt(H)."""
    H = q_BTNH.shape[3]
    return Problem(
        T=q_BTNH.shape[1],
        S=k_BSKH.shape[1],
        H=H,
        K=k_BSKH.shape[2],
        dtype=q_BTNH.dtype,
        visibility=visibility,
        segments=segments is not None,
        q_start=q_start if isinstance(q_start, int) else None,
        kv_head_of_query=kv_head_of_query,
        scale=H**-0.5 if scale is None else scale,
        interpret=interpret,
    )

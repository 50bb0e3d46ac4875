"""Says what is known of a problem of slot attention while it is traced."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """Says what is known of a call while it is traced, but for the arrays' shapes.

    Attributes:
      kv_head_of_query: for each query head the KV head whose slots it reads.
      scale: factor of the logits.
      sinks: whether slots count before anything was written to them.
      interpret: as `slot_attention` takes it.
    """

    kv_head_of_query: tuple[int, ...]
    scale: float
    sinks: bool
    interpret: Any = False

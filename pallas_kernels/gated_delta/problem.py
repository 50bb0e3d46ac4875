"""Says what is known of a problem of the gated delta rule while it is traced."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """Says what is known of a call of `gated_delta` while it is traced, but for its batch.

    Attributes:
      T: tokens of a row.
      K: key heads.
      N: value heads.
      H: key dimension of a head.
      P: value dimension of a head.
      dtype: that of v.
      scale: factor of the output.
      interpret: as `gated_delta` takes it.
    """

    T: int
    K: int
    N: int
    H: int
    P: int
    dtype: Any
    scale: float
    interpret: Any = False

    def __hash__(self):
        return hash((self.T, self.K, self.N, self.H, self.P, self.scale))

    @property
    def group(self) -> int:
        """Returns the number of value heads per key head."""
        return self.N // self.K


def problem_of(k_BTKH, v_BTNP, *, scale: float | None = None, interpret=False) -> Problem:
    """Returns the problem of keys and values; `scale` None is 1 / sqrt(H)."""
    T, K, H = k_BTKH.shape[1:]
    N, P = v_BTNP.shape[2:]
    scale = H**-0.5 if scale is None else scale
    return Problem(T=T, K=K, N=N, H=H, P=P, dtype=v_BTNP.dtype, scale=scale, interpret=interpret)

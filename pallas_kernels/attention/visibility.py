"""Says which keys a query sees."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Visibility:
    """Says what is known of the mask while tracing.

    Attributes:
      causal: a query sees itself and what is before it.
      window: of these the nearest `window`, itself included; None for all. A window is causal.
    """

    causal: bool
    window: int | None = None

    def __post_init__(self):
        if self.window is not None and self.window < 1:
            raise ValueError(f"window={self.window}; a query sees at least itself, so at least 1")
        object.__setattr__(self, "causal", self.causal or self.window is not None)

    def __call__(self, row, column):
        """Says whether the query at position `row` sees the key at `column`; they broadcast."""
        seen = jnp.full(jnp.broadcast_shapes(jnp.shape(row), jnp.shape(column)), True)
        if self.causal:
            seen &= column <= row
        if self.window is not None:
            seen &= column > row - self.window
        return seen


class Segments(NamedTuple):
    """Names documents of queries [B, T] and keys [B, S]; a query sees its own, 0 sees nothing."""

    queries_BT: jax.Array
    keys_BS: jax.Array


def visible_BTS(
    visibility: Visibility, T: int, S: int, q_start, segments: Segments | None
) -> jax.Array:
    """Returns the complete mask; B is 1 without segments."""
    rows_T1 = q_start + jnp.arange(T)[:, None]
    seen_BTS = visibility(rows_T1, jnp.arange(S))[None]
    if segments is not None:
        queries_BT1, keys_B1S = segments.queries_BT[:, :, None], segments.keys_BS[:, None, :]
        seen_BTS = seen_BTS & (queries_BT1 == keys_B1S) & (queries_BT1 != 0)
    return seen_BTS

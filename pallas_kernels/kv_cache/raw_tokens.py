"""Stores the tokens that are read as they were given: sinks and the most recent ones."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

NONE = 2**30
"""Stands for the first token of a row without tokens."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class RawTokens:
    """Stores X tokens a row: first the sinks, then a ring of the tokens written last.

    Slot s of the cache stands at place s % recent of the ring. Fields are arrays, or what a tree
    of the same structure has in their place.

    Attributes:
      k_BXKH: their keys.
      v_BXKH: their values.
      first_B: slot of each row's first token that is not padding, or `NONE`.
      since: the ring holds every slot from this one to the last written.
      length: slots written.
      sinks: how many of the X tokens are sinks.
    """

    k_BXKH: Any
    v_BXKH: Any
    first_B: Any
    since: Any
    length: Any
    sinks: int = dataclasses.field(metadata={"static": True})

    @property
    def recent(self) -> int:
        return self.k_BXKH.shape[1] - self.sinks

    @property
    def begin_B(self) -> jax.Array:
        """Returns the slot from which on tokens are read encoded."""
        return self.first_B + self.sinks if self.sinks else jnp.zeros_like(self.first_B)

    def end_B(self, lengths_B) -> jax.Array:
        """Returns the slot before which tokens are read encoded, in rows of these lengths."""
        return jnp.minimum(lengths_B, self.since) if self.recent else lengths_B

    def append(self, k_BTKH, v_BTKH, start, real_BT) -> "RawTokens":
        """Takes what it stores of T tokens for the slots from `start` on."""
        T = k_BTKH.shape[1]
        new_B = jnp.where(jnp.any(real_BT, axis=1), start + jnp.argmax(real_BT, axis=1), NONE)
        first_B = jnp.where(self.first_B < start, self.first_B, new_B.astype(jnp.int32))
        moved = dataclasses.replace(
            self,
            first_B=first_B,
            length=jnp.asarray(start + T, jnp.int32),
            since=jnp.maximum(start + T - self.recent, jnp.minimum(self.since, start)),
        )
        token_BX = moved._all_slots_BX() - start
        is_new_BX11 = ((token_BX >= 0) & (token_BX < T))[..., None, None]
        source_BX11 = jnp.clip(token_BX, 0, T - 1)[..., None, None]

        def take(x_BXKH, new_BTKH):
            new_BXKH = jnp.take_along_axis(new_BTKH, source_BX11, axis=1).astype(x_BXKH.dtype)
            return jnp.where(is_new_BX11, new_BXKH, x_BXKH)

        return dataclasses.replace(
            moved, k_BXKH=take(self.k_BXKH, k_BTKH), v_BXKH=take(self.v_BXKH, v_BTKH)
        )

    def slots_BX(self) -> jax.Array:
        """Returns the slot of each token, and -1 for those that are empty or there twice."""
        slots_BX = self._all_slots_BX()
        is_sink_X = jnp.arange(slots_BX.shape[1]) < self.sinks
        least_BX = jnp.where(is_sink_X, 0, jnp.maximum(self.begin_B[:, None], self.since))
        return jnp.where((slots_BX >= least_BX) & (slots_BX < self.length), slots_BX, -1)

    def pick(self, kv_heads) -> "RawTokens":
        """Returns the tokens of these KV heads only."""
        return dataclasses.replace(
            self, k_BXKH=self.k_BXKH[:, :, kv_heads], v_BXKH=self.v_BXKH[:, :, kv_heads]
        )

    def put_into(self, k_BSKH, v_BSKH) -> tuple[jax.Array, jax.Array]:
        """Returns keys and values of all slots, with these tokens at theirs."""
        rows_B1 = jnp.arange(k_BSKH.shape[0])[:, None]
        slots_BX = self.slots_BX()
        slots_BX = jnp.where(slots_BX < 0, k_BSKH.shape[1], slots_BX)
        put = lambda x, new: x.at[rows_B1, slots_BX].set(new.astype(x.dtype), mode="drop")
        return put(k_BSKH, self.k_BXKH), put(v_BSKH, self.v_BXKH)

    def _all_slots_BX(self):
        """Returns the slots that the places stand for, written or not."""
        last = self.length - 1
        ring_X = last - (last - jnp.arange(self.recent)) % max(self.recent, 1)
        sinks_BX = self.first_B[:, None] + jnp.arange(self.sinks)
        ring_BX = jnp.broadcast_to(ring_X, (len(self.first_B), self.recent))
        return jnp.concatenate((sinks_BX, ring_BX), axis=1)


def empty_raw_tokens(batch: int, kv_heads: int, H: int, sinks: int, recent: int, dtype):
    """Returns the tokens of rows in which nothing was written."""
    zeros = jnp.zeros((batch, sinks + recent, kv_heads, H), dtype)
    return RawTokens(
        k_BXKH=zeros,
        v_BXKH=zeros,
        first_B=jnp.full(batch, NONE, jnp.int32),
        since=jnp.zeros((), jnp.int32),
        length=jnp.zeros((), jnp.int32),
        sinks=sinks,
    )

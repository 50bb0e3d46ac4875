"""Reads slots with the query heads of one KV head, which stand one after another on the lanes."""

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels.slot_attention.tpu.blocks import CHUNK


@dataclasses.dataclass(frozen=True)
class Queries:
    """Says where the query heads of a program's `head`-th KV head lie."""

    head: int
    readers: int
    H: int

    def number(self, reader: int) -> int:
        return self.head * self.readers + reader

    def lanes(self, reader: int) -> slice:
        number = self.number(reader)
        return slice(number * self.H, (number + 1) * self.H)

    def rows(self, ref, t: slice, products) -> tuple:
        """Returns the factor [readers * C, H] of the queries, or of gradients of the outputs."""
        rows = [ref[0, t, self.lanes(reader)] for reader in range(self.readers)]
        return products.round(jnp.concatenate(rows, axis=0))


def cut(x, parts: int) -> list:
    """Cuts [rows, parts * C]."""
    return [x[:, i * CHUNK : (i + 1) * CHUNK] for i in range(parts)]


def softmax(logits_MC, scale: float, seen_1C, used_slots: int):
    """Returns probabilities, 0 where a query sees nothing, and log-sum-exp [1, C].

    Args:
      logits_MC: logits before they are multiplied by `scale`.
    """
    logits_MC = mask_slots(scale * logits_MC, used_slots)
    largest_1C = jnp.max(logits_MC, axis=0, keepdims=True)
    p_MC = jnp.exp(logits_MC - largest_1C)
    total_1C = jnp.sum(p_MC, axis=0, keepdims=True)
    return p_MC * (seen_1C / total_1C), largest_1C + jnp.log(total_1C)


def mask_slots(logits_MC, used_slots: int):
    """Takes the slots away that only fill up the array."""
    if used_slots == logits_MC.shape[0]:
        return logits_MC
    slot = jax.lax.broadcasted_iota(jnp.int32, logits_MC.shape, 0)
    return jnp.where(slot < used_slots, logits_MC, -1e30)

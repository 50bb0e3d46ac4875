"""Reads the matrix from the embedding to the vocabulary, a part of it at a time."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hydrahead_jax.sharding import Layout

_MASKED = -1e30
_LANES = 128
_NAMES = ("w_embed_VD", "w_unembed_DV")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Unembedding:
    """Wraps the unembedding in the orientation in which the model stores it.

    `weight` is [V, D] where `vocabulary_axis` is 0, and [D, V] where it is 1. So no transposed copy
    is made.
    """

    weight: jax.Array
    vocabulary_axis: int = dataclasses.field(metadata={"static": True})

    def place(self, layout: Layout | None) -> "Place":
        if layout is None:
            return Place(self.vocabulary_axis, None, None)
        axes = layout.param_spec(_NAMES[self.vocabulary_axis], self.weight.shape)
        axes = axes if self.vocabulary_axis == 0 else axes[::-1]
        return Place(self.vocabulary_axis, *axes)


class Place(NamedTuple):
    """Says where the parts of an unembedding are.

    Attributes:
      vocabulary_axis: axis of the array that is the vocabulary.
      vocabulary: mesh axis that shards the vocabulary; None where it is not sharded.
      embed: mesh axis that shards the embedding.
    """

    vocabulary_axis: int
    vocabulary: str | None
    embed: str | None

    @property
    def spec(self) -> jax.sharding.PartitionSpec:
        axes = (self.vocabulary, self.embed)
        return jax.sharding.PartitionSpec(*(axes if self.vocabulary_axis == 0 else axes[::-1]))

    def logits(self, hidden_XD, chunk, is_new_C):
        """Returns [X, C] in float32 or better, far below all others where an entry is not new."""
        dims = "XD,CD->XC" if self.vocabulary_axis == 0 else "XD,DC->XC"
        wide = jnp.promote_types(hidden_XD.dtype, jnp.float32)
        logits_XC = jnp.einsum(dims, hidden_XD, chunk, preferred_element_type=wide)
        return jnp.where(is_new_C, logits_XC, _MASKED)


class Span(NamedTuple):
    """Selects entries start .. start + width of this rank's vocabulary.

    All spans are as wide, so the last one begins with entries of the one before, which are not new.

    Attributes:
      start: first entry.
      width: width of all spans.
      ids_C: ids of the entries in the complete vocabulary.
      is_new_C: whether this span counts them.
    """

    start: jax.Array
    width: int
    ids_C: jax.Array
    is_new_C: jax.Array

    def of(self, weight, place: Place):
        """Returns those entries of an unembedding, gathered along the embedding."""
        axis = place.vocabulary_axis
        chunk = jax.lax.dynamic_slice_in_dim(weight, self.start, self.width, axis)
        if place.embed is not None:
            chunk = jax.lax.all_gather(chunk, place.embed, axis=1 - axis, tiled=True)
        return chunk

    def add(self, total, part, place: Place):
        """Returns `total` with `part` added to those entries."""
        axis = place.vocabulary_axis
        old = jax.lax.dynamic_slice_in_dim(total, self.start, self.width, axis)
        new = old + part.astype(total.dtype)
        return jax.lax.dynamic_update_slice_in_dim(total, new, self.start, axis)


def span_width(entries: int, at_once: int) -> tuple[int, int]:
    """Returns (number, width) of spans of at most `at_once` entries; wide ones have full lanes."""
    count = -(-entries // at_once)
    width = -(-entries // count)
    if at_once % _LANES == 0 and count > 1:
        width = -(-width // _LANES) * _LANES
    return count, width


def span(index, entries: int, width: int, place: Place) -> Span:
    """Returns the span of that number among a rank's `entries`."""
    start = jnp.minimum(index * width, entries - width)
    own_C = start + jnp.arange(width)
    first = 0 if place.vocabulary is None else jax.lax.axis_index(place.vocabulary) * entries
    return Span(start, width, first + own_C, own_C >= index * width)

"""Lists the steps that a kernel walks: only blocks in which some query sees some key.

A step is one int32: query block, key block, what to do there, and whether it is the first or the
last of its query block. The list lies in scalar memory; the pipeline reads from it which blocks to
copy, so a block that nobody sees costs neither time nor traffic.
"""

import enum
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention.tpu.blocks import Blocks
from pallas_kernels.attention.visibility import Segments, Visibility

_BITS = 12
MAX_BLOCKS = 1 << _BITS


class Do(enum.IntFlag):
    """Names the bits of a step.

    At most one of the first three says what to do with the block; the others say when.
    """

    FULL = 1 << 24
    DIAGONAL = 1 << 25
    MASKED = 1 << 26
    BEGIN_QUERIES = 1 << 27
    END_QUERIES = 1 << 28
    BEGIN_LIST = 1 << 29
    END_LIST = 1 << 30


KINDS = (Do.FULL, Do.DIAGONAL, Do.MASKED)


class Steps(NamedTuple):
    """Lists the steps of each row and part.

    Attributes:
      words: int32 [B, parts, steps], by query block and then by key block; B may be 1.
      lengths: int32 [parts], how many of them to walk. A list that has less repeats its last step
        with nothing to do.
    """

    words: jax.Array | np.ndarray
    lengths: jax.Array | np.ndarray


class Step(NamedTuple):
    """Unpacks a step, a scalar in a kernel, or an array of steps."""

    word: jax.Array

    @property
    def queries(self):
        return self.word & (MAX_BLOCKS - 1)

    @property
    def keys(self):
        return (self.word >> _BITS) & (MAX_BLOCKS - 1)

    def does(self, flag: Do):
        return (self.word & int(flag)) != 0


def shares(steps: Steps) -> dict[Do, float]:
    """Returns, for each kind of work, its share of all steps of the lists."""
    words = Step(np.asarray(steps.words))
    return {flag: float(np.mean(words.does(flag))) for flag in Do}


def list_steps(
    *,
    T: int,
    S: int,
    key_blocks: int,
    blocks: Blocks,
    visibility: Visibility,
    q_start,
    segments: Segments | None,
    parts: int = 1,
    every_query: bool = True,
) -> Steps:
    """Makes the lists of a kernel: NumPy arrays if all is known while tracing.

    Args:
      T: queries, without padding at the end.
      S: keys, without padding at the end.
      key_blocks: number of key blocks, padding included.
      q_start: int, or int32 [B].
      segments: segments of queries and keys, padded to complete blocks.
      parts: number of parts of the key blocks, each with a list of its own that counts from the
        part's first.
      every_query: list each query block at least once, so that its result is written.
    """
    known = dict(T=T, S=S, key_blocks=key_blocks, blocks=blocks, visibility=visibility, parts=parts)
    if segments is None and isinstance(q_start, int):
        kinds_BPIJ = _kinds(np, q_start=np.array([q_start]), segments=None, **known)
        return _listed(np, kinds_BPIJ, every_query, None)
    kinds_BPIJ = _kinds(jnp, q_start=jnp.atleast_1d(q_start), segments=segments, **known)
    return _listed(jnp, kinds_BPIJ, every_query, _most(q_start, every_query, **known))


def _kinds(
    xp, *, T, S, key_blocks, blocks: Blocks, visibility: Visibility, parts, q_start, segments
):
    """Says what to do with each block [B, parts, query blocks, key blocks of a part]."""
    I, J = -(-T // blocks.queries), key_blocks
    start_I1 = xp.arange(I)[:, None] * blocks.queries
    row = q_start[:, None, None] + start_I1
    last_row = q_start[:, None, None] + xp.minimum(start_I1 + blocks.queries, T) - 1
    column = xp.arange(J) * blocks.keys
    last_column = xp.minimum(column + blocks.keys, S) - 1
    some, every = column < S, column + blocks.keys <= S
    diagonal = (row == column) & (blocks.queries == blocks.keys) & (every | (last_row < S))
    if visibility.causal:
        some, every = some & (column <= last_row), every & (last_column <= row)
    if visibility.window is not None:
        some = some & (last_column > row - visibility.window)
        every = every & (column > last_row - visibility.window)
    if not visibility.causal or segments is not None or (visibility.window or T) < blocks.keys:
        diagonal = diagonal & False
    if segments is not None:
        meet, same = _segments_meet(segments, blocks)
        some, every = some & meet, every & same
    partly = xp.where(diagonal, int(Do.DIAGONAL), int(Do.MASKED))
    kinds = xp.where(every, int(Do.FULL), xp.where(some, partly, 0))
    return xp.moveaxis(kinds.reshape(-1, I, parts, J // parts), 2, 1)


def _segments_meet(segments: Segments, blocks: Blocks):
    """Says whether some and whether all queries and keys of a block share a document, [B, I, J]."""

    def ends(ids_BT, size):
        ids = ids_BT.reshape(ids_BT.shape[0], -1, size)
        first = jnp.min(jnp.where(ids == 0, jnp.iinfo(ids.dtype).max, ids), axis=2)
        return first, jnp.max(ids, axis=2), jnp.all(ids == ids[:, :, :1], axis=2)

    q_first, q_last, q_alike = (x[:, :, None] for x in ends(segments.queries_BT, blocks.queries))
    k_first, k_last, k_alike = (x[:, None, :] for x in ends(segments.keys_BS, blocks.keys))
    meet = (q_first <= k_last) & (k_first <= q_last)
    return meet, meet & q_alike & k_alike


def _most(q_start, every_query: bool, **known) -> int:
    """Returns the most steps that a part can have, whatever is known at run time only."""
    if isinstance(q_start, int):
        kinds_BPIJ = _kinds(np, q_start=np.array([q_start]), segments=None, **known)
        counts_PI = np.sum(kinds_BPIJ[0] != 0, axis=2)
    else:
        blocks, window = known["blocks"], known["visibility"].window
        reach = known["key_blocks"] // known["parts"]
        if window is not None:
            reach = min(reach, (window + blocks.queries - 2) // blocks.keys + 2)
        counts_PI = np.full((1, -(-known["T"] // blocks.queries)), reach)
    if every_query:
        counts_PI = np.maximum(counts_PI, 1)
    return max(1, int(np.max(np.sum(counts_PI, axis=1))))


def _listed(xp, kinds_BPIJ, every_query: bool, length: int | None):
    B, P, I, J = kinds_BPIJ.shape
    listed = kinds_BPIJ != 0
    nothing = ~xp.any(listed, axis=3 if every_query else (2, 3), keepdims=True)
    places = (xp.arange(J) == 0) & (every_query | (xp.arange(I)[:, None] == 0))
    listed = (listed | (nothing & places)).reshape(B, P, I * J)
    count = xp.sum(listed, axis=2, keepdims=True)
    longest = xp.max(count, axis=0)
    if length is None:
        length = int(np.max(count))
        longest = np.full_like(longest, length)
    order = xp.argsort(~listed, axis=2, stable=True)
    turn = xp.minimum(xp.arange(length), count - 1)
    place = xp.take_along_axis(order, turn, axis=2)
    real = xp.arange(length) < count
    kind = xp.where(real, xp.take_along_axis(kinds_BPIJ.reshape(B, P, -1), place, axis=2), 0)
    i, j = place // J, place % J
    changes = i[:, :, 1:] != i[:, :, :-1]
    edge = xp.full((B, P, 1), True)
    begins = xp.concatenate([edge, changes], axis=2)
    ends = xp.concatenate([changes, edge], axis=2) if length > 1 else edge
    turns = xp.arange(length)
    ends = (ends | (turns == count - 1)) & real
    flags = begins * int(Do.BEGIN_QUERIES) | ends * int(Do.END_QUERIES)
    flags |= (turns == 0) * int(Do.BEGIN_LIST) | (turns == longest - 1) * int(Do.END_LIST)
    words = (i | (j << _BITS) | kind | flags).astype(xp.int32)
    return Steps(words, longest[:, 0].astype(xp.int32))

"""Encodes a row of a batch for the cache, and decodes it."""

import zlib
from typing import NamedTuple

import numpy as np

from hydrahead_jax.vocabulary import Kept
from train.data.batches import Batch

_TAIL, _LOG_P, _LOW, _HIGH = np.dtype("<f4"), np.dtype("<f2"), np.dtype("<u2"), np.dtype("u1")
_SMALL_VOCABULARY = 2**16


class RowFormat(NamedTuple):
    """Encodes a row of a batch as bytes.

    Log probabilities are float16, so their relative error is at most 2^-11; tails are float32. Ids
    have 2 bytes each, or 3 where the vocabulary is larger than 65,536.
    """

    length: int
    tokens: int
    vocab: int

    @property
    def _arrays(self) -> list[tuple[np.dtype, int]]:
        kept = self.length * self.tokens
        fields = [(_TAIL, self.length), (_LOG_P, kept), (_LOW, kept)]
        return fields + ([(_HIGH, kept)] if self.vocab > _SMALL_VOCABULARY else [])

    @property
    def bytes(self) -> int:
        """Returns the bytes of a row, before the file compresses it."""
        return 4 + sum(dtype.itemsize * count for dtype, count in self._arrays)

    def encode(self, ids_TK, log_p_TK, tail_T, checksum: int) -> bytes:
        """Encodes a row; `checksum` is that of the row's tokens."""
        parts = [tail_T, log_p_TK, ids_TK & (_SMALL_VOCABULARY - 1), ids_TK >> 16]
        arrays = [
            np.ascontiguousarray(part, dtype)
            for part, (dtype, _) in zip(parts, self._arrays, strict=False)
        ]
        return b"".join([checksum.to_bytes(4, "little"), *(array.tobytes() for array in arrays)])

    def decode(self, record: bytes) -> tuple[Kept, int]:
        """Returns the tokens [T, K] with float16 log probabilities, and the row's checksum."""
        parts, start = [], 4
        for dtype, count in self._arrays:
            parts.append(np.frombuffer(record, dtype, count, start))
            start += dtype.itemsize * count
        tail_T, log_p, low, *high = parts
        ids = low.astype(np.int32)
        if high:
            ids |= high[0].astype(np.int32) << 16
        shape = (self.length, self.tokens)
        kept = Kept(ids.reshape(shape), log_p.reshape(shape), tail_T)
        return kept, int.from_bytes(record[:4], "little")


def row_checksums(batch: Batch) -> list[int]:
    """Returns a checksum of each row's tokens and documents."""
    both = np.stack([batch.tokens_BT, batch.segment_ids_BT], axis=1).astype("<i4")
    return [zlib.crc32(np.ascontiguousarray(row)) for row in both]

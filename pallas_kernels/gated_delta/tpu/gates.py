"""Computes the gates as the TPU kernels read them: sums over a chunk, made outside the kernel.

A cumulative sum costs the kernel more than a read. Exponents are of base 2, which the hardware has.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.gated_delta.tpu.blocks import CHUNK, Blocks

LEAST_BETA = 1e-30


class Gates(NamedTuple):
    """Carries the gates, each [B, N / heads, heads, T] float32.

    Attributes:
      reading: log2 decay from the chunk's start through this token; for float32 kernels the log2
        decay of this token alone, since a difference of two long sums has lost digits.
      writing: that sum, or 0, less log2 of the write strength.
      kept: decay from the chunk's start through this token.
      to_exit: write strength times the decay after this token, to the chunk's end.
    """

    reading: jax.Array
    writing: jax.Array
    kept: jax.Array
    to_exit: jax.Array


def chunk_gates(log_decay_BTN, beta_BTN, blocks: Blocks, *, float32: bool) -> Gates:
    """Computes the gates of all chunks.

    A write strength of 0 becomes `LEAST_BETA`, so that its gradient can be computed from that of V.
    """
    own = by_head(log_decay_BTN, blocks) / math.log(2)
    beta = jnp.maximum(by_head(beta_BTN, blocks), LEAST_BETA)
    up_to = _sum_over_chunk(own)
    after = _sum_over_chunk(_shift_in_chunk(own, -1), reverse=True)
    log_write = jnp.log2(beta)
    return Gates(
        reading=own if float32 else up_to,
        writing=-log_write if float32 else up_to - log_write,
        kept=jnp.exp2(up_to),
        to_exit=beta * jnp.exp2(after),
    )


def gate_gradients(dsum, dexit, dwrite, beta_BTN):
    """Returns the gradients [B, T, N] of log decay and write strength.

    Sums over later and over earlier tokens stay apart: under strong decay they are tiny, and
    would be lost in the difference of two large ones.

    Args:
      dsum: gradient of the log decays' sums up to each token.
      dexit: gradient of their sums after each token, to the chunk's end.
      dwrite: gradient of the write strengths, times these.
    """
    B, T, N = beta_BTN.shape
    dlog_decay = _sum_over_chunk(dsum, reverse=True)
    dlog_decay += _sum_over_chunk(_shift_in_chunk(dexit, 1))
    to_BTN = lambda x: jnp.moveaxis(x.reshape(B, N, T), 1, 2)
    return to_BTN(dlog_decay), to_BTN(dwrite) / jnp.maximum(beta_BTN, LEAST_BETA)


def by_head(x_BTN, blocks: Blocks):
    """Reorders [B, T, N] to [B, N / heads, heads, T]."""
    B, T, N = x_BTN.shape
    return jnp.moveaxis(x_BTN, 1, 2).reshape(B, N // blocks.heads, blocks.heads, T)


def _sum_over_chunk(x, *, reverse: bool = False):
    """Computes cumulative sums of each chunk by a product with a 0/1 matrix.

    A TPU has no faster way.
    """
    chunks = x.reshape(*x.shape[:-1], -1, CHUNK)
    token = jnp.arange(CHUNK)
    within = token[:, None] >= token if reverse else token[:, None] <= token
    sums = jnp.matmul(chunks, within.astype(x.dtype), precision=jax.lax.Precision.HIGHEST)
    return sums.reshape(x.shape)


def _shift_in_chunk(x, by: int):
    """Shifts one token later (1) or earlier (-1), and fills with zero."""
    chunks = x.reshape(*x.shape[:-1], -1, CHUNK)
    kept = chunks[..., :-1] if by == 1 else chunks[..., 1:]
    widths = [(0, 0)] * (chunks.ndim - 1) + [(1, 0) if by == 1 else (0, 1)]
    return jnp.pad(kept, widths).reshape(x.shape)


class BlockGates:
    """Reads the gates of one program's block, inside the kernel, as rows and as columns."""

    def __init__(self, refs, *, float32: bool):
        self.rows = Gates(*(ref[0, 0] for ref in refs))
        self.columns = Gates(*(row.T for row in self.rows))
        row, column = (jax.lax.broadcasted_iota(jnp.int32, (CHUNK, CHUNK), a) for a in (0, 1))
        self.causal, self.strict = row >= column, row > column
        self.last = column[:1] == CHUNK - 1
        self.float32 = float32

    def decay(self, head: int, piece: int):
        """Returns [i, j]: decay after token j up to i, times write strength of j; 0 for j > i."""
        t = slice(piece * CHUNK, (piece + 1) * CHUNK)
        exponent = self._column(self.columns.reading, head, piece, CHUNK)
        if self.float32:
            exponent = _pairwise_sums(exponent, self.causal, self.strict)
        exponent = exponent - self.rows.writing[head : head + 1, t]
        return jnp.exp2(jnp.where(self.causal, exponent, -jnp.inf))

    def kept(self, head: int, piece: int, width: int):
        """Returns `Gates.kept` as a column, repeated to [C, width]."""
        return self._column(self.columns.kept, head, piece, width)

    def to_exit(self, head: int, piece: int, width: int):
        """Returns `Gates.to_exit` as a column, repeated to [C, width]."""
        return self._column(self.columns.to_exit, head, piece, width)

    def through(self, head: int, piece: int, width: int):
        """Returns [1, width]: the decay of the complete chunk, repeated."""
        end = (piece + 1) * CHUNK
        return jnp.broadcast_to(self.rows.kept[head : head + 1, end - 1 : end], (1, width))

    def _column(self, columns, head: int, piece: int, width: int):
        column = columns[piece * CHUNK : (piece + 1) * CHUNK, head : head + 1]
        return jnp.broadcast_to(column, (CHUNK, width))


def _pairwise_sums(own_CC, causal, strict):
    """Sums `own` over j < m <= i into [i, j]; own_CC repeats a column."""
    return jax.lax.dot_general(
        causal.astype(jnp.float32),
        jnp.where(strict, own_CC, 0.0),
        (((1,), (0,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
    )

"""Chooses how much of a problem one step of the TPU kernels takes."""

import dataclasses
import math

import jax.numpy as jnp

from pallas_kernels.attention.problem import Problem
from pallas_kernels.tpu_devices import NARROW_UNITS

LANES = 128
CHAIN = 256
LARGEST = 2048
RESIDENT_BYTES = 8 << 20
VMEM_BYTES = 60 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
    """Says how much of one head a grid step takes.

    Attributes:
      queries: queries of a step.
      keys: keys of a step.
      chain: queries of one chain of products; it divides `queries` and `keys`.
      piece: keys of one product.
      skew: turns between the starts of two chains, see `interleave`.
    """

    queries: int
    keys: int
    chain: int
    piece: int
    skew: float

    def __post_init__(self):
        for name in ("queries", "keys"):
            size = getattr(self, name)
            if size % LANES or size % self.chain or size % self.piece:
                raise ValueError(
                    f"{name}={size} must be a multiple of {LANES}, of chain={self.chain} and of "
                    f"piece={self.piece}"
                )

    @property
    def chains(self) -> int:
        return self.queries // self.chain

    @property
    def score_buffers(self) -> int:
        """Returns how many chains hold scores at one time in the forward kernel.

        A chain that has p pieces reads a piece of its scores p + 1 turns after it wrote it. The
        chain that takes its buffer must not have come to that piece by then.
        """
        turns = self.keys // self.piece + 2
        return min(self.chains, math.ceil(turns / self.skew))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuBlocks:
    """Says the blocks of both kernels for sequences.

    Attributes:
      parts: number of parts of the keys, so that the backward can hold the gradients of one
        part in VMEM.
    """

    forward: Blocks
    backward: Blocks
    parts: int = 1

    def __post_init__(self):
        ours, theirs = self.forward, self.backward
        if self.parts < 1:
            raise ValueError(f"parts={self.parts}; the keys have at least one part")
        if (ours.queries, ours.keys) != (theirs.queries, theirs.keys):
            raise ValueError(f"forward and backward blocks must be of one size: {ours}, {theirs}")

    def padded_queries(self, T: int) -> int:
        return -(-T // self.forward.queries) * self.forward.queries

    def padded_keys(self, S: int) -> int:
        unit = self.parts * self.forward.keys
        return -(-S // unit) * unit


def choose_blocks(problem: Problem, device_kind: str) -> TpuBlocks:
    """Chooses the blocks of both kernels.

    Large blocks keep the matrix units busy, small ones waste less at the edges of a mask.

    The code of a block is unrolled, so it grows with the number of products. There are many
    products in float32, with large heads, and on narrow matrix units. Piece and skew were swept on
    the compiler's schedules for v6e.
    """
    H = problem.H + -problem.H % LANES
    itemsize = jnp.dtype(problem.dtype).itemsize
    limit = LARGEST * LANES * 4 // (itemsize**2 * H)
    if device_kind in NARROW_UNITS:
        limit = min(limit, LARGEST // 2)
    window = problem.visibility.window
    if problem.segments or (window is not None and window < 2 * LARGEST):
        limit = min(limit, LARGEST // 2)
    if window is not None and window <= LARGEST // 4:
        limit = min(limit, LARGEST // 4)
    queries, keys = _even(problem.T, limit), _even(problem.S, limit)
    chain = CHAIN if queries % CHAIN == keys % CHAIN == 0 else LANES
    sizes = dict(queries=queries, keys=keys, chain=chain)
    resident = max(1, RESIDENT_BYTES // (8 * H * keys))
    return TpuBlocks(
        forward=Blocks(**sizes, piece=chain, skew=4.0),
        backward=Blocks(**sizes, piece=LANES, skew=0.5),
        parts=-(-problem.S // (keys * resident)),
    )


def _even(length: int, limit: int) -> int:
    """Cuts into blocks of nearly equal size, at most `limit`, in complete lanes or chains."""
    blocks = -(-length // limit)
    unit = LANES if length <= LANES else CHAIN
    return -(-length // (blocks * unit)) * unit

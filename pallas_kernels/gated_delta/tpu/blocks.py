"""Chooses how much of a problem one program of the TPU kernels takes."""

import dataclasses

import jax.numpy as jnp

from pallas_kernels.gated_delta.problem import Problem
from pallas_kernels.tpu_devices import NARROW_UNITS, TWO_CORES

CHUNK = 128
LANES = 128
CHAINS = 16
MAX_PIECES = 8
BLOCK_BYTES = 24 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuBlocks:
    """Says what a caller may choose of both kernels' blocks.

    Attributes:
      heads: value heads of a program; a multiple or a divisor of the value heads per key head.
      forward_chunks: chunks of 128 tokens in a step of the forward; they divide those of a row.
      backward_chunks: the same in the backward.
    """

    heads: int
    forward_chunks: int = 1
    backward_chunks: int = 1

    def __post_init__(self):
        if min(self.heads, self.forward_chunks, self.backward_chunks) < 1:
            raise ValueError(f"{self} must have positive sizes")

    def check(self, group: int, chunks: int) -> None:
        if self.heads % group and group % self.heads:
            raise ValueError(
                f"heads={self.heads} must be a multiple or a divisor of the {group} value heads "
                "per key head"
            )
        for pieces in (self.forward_chunks, self.backward_chunks):
            if chunks % pieces:
                raise ValueError(f"{pieces} chunks of a step must divide the {chunks} of a row")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
    """Says what one program takes.

    Attributes:
      heads: value heads.
      key_heads: key heads that they read.
      group: value heads per key head, in the complete problem.
      pieces: chunks per grid step.
      skew: turns between the starts of two chains, see `interleave.interleave`.
      packed: whether the matrix units are 256 wide, see `products.Products`.
    """

    heads: int
    key_heads: int
    group: int
    pieces: int
    skew: float
    packed: bool

    @property
    def tokens(self) -> int:
        return self.pieces * CHUNK

    @property
    def programs_a_key_head(self) -> int:
        return max(1, self.group // self.heads)


def choose_blocks(
    problem: Problem, batch: int, device_kind: str, chosen: TpuBlocks | None = None
) -> tuple[Blocks, Blocks]:
    """Chooses the blocks of the forward and of the backward kernel, unless a caller has.

    A chunk of one head is a chain of small dependent products, so a program needs about `CHAINS`
    of them side by side, heads or pieces; a device of two cores needs two programs. Heads are
    padded to a multiple of `heads`, and key heads to one of `key_heads`. The skews were swept
    on the compiler's schedules.
    """
    group, key_heads, chunks = problem.group, problem.K, -(-problem.T // CHUNK)
    cores = 2 if device_kind in TWO_CORES else 1
    fitting = max(1, BLOCK_BYTES // _head_bytes(problem))
    most = min(CHAINS, fitting)
    if chosen:
        chosen.check(group, chunks)
        heads = chosen.heads
    elif group > most:
        heads = max(n for n in range(1, most + 1) if group % n == 0)
    else:
        programs = max(-(-key_heads // (most // group)), -(-cores // batch))
        largest = -(-key_heads // programs)
        even = [n for n in range(largest, largest // 2, -1) if key_heads % n == 0]
        heads = (even or [largest])[0] * group
    share = dict(
        heads=heads,
        key_heads=max(1, heads // group),
        group=group,
        packed=device_kind not in NARROW_UNITS,
    )

    def blocks(pieces: int, skew: float) -> Blocks:
        limit = max(1, min(pieces, MAX_PIECES, fitting // heads))
        pieces = max(n for n in range(1, limit + 1) if chunks % n == 0)
        return Blocks(**share, pieces=pieces, skew=skew)

    found = blocks(max(2, CHAINS // heads), 0.3), blocks(max(1, CHAINS // heads), 0.05)
    if chosen:
        forward, backward = found
        forward = dataclasses.replace(forward, pieces=chosen.forward_chunks)
        found = forward, dataclasses.replace(backward, pieces=chosen.backward_chunks)
    return found


def complete_lanes(size: int) -> int:
    return size + -size % LANES


def _head_bytes(problem: Problem) -> int:
    """Returns the VMEM of a chunk of a head in the backward kernel.

    It is twice what the pipeline loads, the carried state, and the intermediates of products in
    full float32.
    """
    H, P = complete_lanes(problem.H), complete_lanes(problem.P)
    item = jnp.dtype(problem.dtype).itemsize
    arrays = CHUNK * (4 * H + 3 * P) + H * P
    inverse = CHUNK * CHUNK * 4
    held = 8 * CHUNK * (H + P) if item == 4 else 0
    return 2 * (item * arrays + inverse) + 4 * H * P + held

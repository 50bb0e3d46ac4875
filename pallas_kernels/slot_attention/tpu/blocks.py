"""Chooses how much of a problem one program of the TPU kernels takes."""

import dataclasses

from pallas_kernels.gated_delta.tpu.blocks import complete_lanes
from pallas_kernels.tpu_devices import NARROW_UNITS, TWO_CORES

CHUNK = 128
LANES = 128
KV_HEADS = 8
CHAINS = 16
MAX_WEIGHT = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuBlocks:
    """Says what a caller may choose of both kernels' blocks.

    Attributes:
      kv_heads: KV heads of a program, with their query heads.
      forward_chunks: chunks of 128 tokens in a step of the forward; they divide those of a row.
      backward_chunks: the same in the backward.
    """

    kv_heads: int
    forward_chunks: int = 1
    backward_chunks: int = 1

    def __post_init__(self):
        if min(self.kv_heads, self.forward_chunks, self.backward_chunks) < 1:
            raise ValueError(f"{self} must have positive sizes")

    def check(self, chunks: int) -> None:
        for pieces in (self.forward_chunks, self.backward_chunks):
            if chunks % pieces:
                raise ValueError(f"{pieces} chunks of a step must divide the {chunks} of a row")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
    """Says what one program takes.

    Attributes:
      kv_heads: KV heads.
      readers: query heads of each.
      pieces: chunks per grid step.
      skew: turns between the starts of two chains, see `interleave.interleave`.
      packed: whether the matrix units are 256 wide, see `products.Products`.
    """

    kv_heads: int
    readers: int
    pieces: int
    skew: float
    packed: bool

    @property
    def tokens(self) -> int:
        return self.pieces * CHUNK


def weight(readers: int, H: int, itemsize: int) -> int:
    """Returns what a chunk of a KV head takes of a program's VMEM, of `MAX_WEIGHT`.

    Products in full float32 keep three parts of each factor.
    """
    return readers * complete_lanes(H) // LANES * (4 if itemsize == 4 else 1)


def choose_blocks(
    kv_heads: int,
    readers: int,
    length: int,
    batch: int,
    device_kind: str,
    chosen: TpuBlocks | None = None,
    *,
    weight: int,
) -> tuple[Blocks, Blocks]:
    """Chooses the blocks of the forward and of the backward kernel, unless a caller has.

    A chunk of one KV head is a chain of dependent products, so a program needs several side by
    side, heads or pieces; a device of two cores needs two programs. KV heads are padded to a
    multiple of those of a program. The skews were swept on the compiler's schedules.

    Args:
      weight: of a chunk of a KV head, see `weight`.
    """
    chunks, fitting = -(-length // CHUNK), max(1, MAX_WEIGHT // weight)
    packed = device_kind not in NARROW_UNITS
    if chosen:
        chosen.check(chunks)
        heads = chosen.kv_heads
    else:
        cores = 2 if device_kind in TWO_CORES else 1
        programs = max(-(-kv_heads // min(KV_HEADS, fitting)), -(-cores // batch))
        largest = -(-kv_heads // programs)
        even = [n for n in range(largest, largest // 2, -1) if kv_heads % n == 0]
        heads = (even or [largest])[0]

    def blocks(pieces: int, skew: float) -> Blocks:
        pieces = max(n for n in range(1, max(1, pieces) + 1) if chunks % n == 0)
        return Blocks(kv_heads=heads, readers=readers, pieces=pieces, skew=skew, packed=packed)

    pieces = min(CHAINS, fitting) // heads
    found = blocks(pieces, 0.6 if readers == 1 else 0.3), blocks(pieces, 0.3)
    if chosen:
        forward, backward = found
        forward = dataclasses.replace(forward, pieces=chosen.forward_chunks)
        found = forward, dataclasses.replace(backward, pieces=chosen.backward_chunks)
    return found

"""Says how the Hopper kernel over an encoded cache cuts its work."""

import dataclasses

from pallas_kernels.attention.gpu.blocks import COMPUTE_REGISTERS, COPY_REGISTERS, choose_shares
from pallas_kernels.kv_cache.gpu.fragments import TOKENS

COLUMNS = 8  # granule of a program's query heads
RING = 160 * 1024  # bytes of keys and values in shared memory
MOST_COLUMNS = {64: 32, 128: 32, 256: 16}  # by head dimension: more would not fit into registers


@dataclasses.dataclass(frozen=True, kw_only=True)
class HopperPackedBlocks:
    """Says how the kernel cuts its work.

    Attributes:
      warpgroups: how many compute, 2 or 3; each takes `TOKENS` keys of a step.
      stages: for how many steps shared memory holds keys and values.
      shares: programs among which the keys of a row are divided.
    """

    warpgroups: int
    stages: int
    shares: int

    def __post_init__(self):
        if self.warpgroups not in (2, 3):  # registers are divided among so many
            raise ValueError(f"warpgroups={self.warpgroups}; 2 and 3 are accepted")
        if self.stages < 1 or self.shares < 1:
            raise ValueError(f"stages={self.stages} and shares={self.shares} must be positive")

    @property
    def block(self) -> int:
        """Returns the keys of a step."""
        return self.warpgroups * TOKENS

    @property
    def compute_registers(self) -> int:
        """Returns how many of 65536 are left for each thread that computes, a multiple of 8."""
        left = (65536 // 128 - COPY_REGISTERS) // self.warpgroups
        return min(COMPUTE_REGISTERS, left // 8 * 8)


def columns_of(readers: int, head_dim: int) -> int:
    """Returns how many columns a program has for the query heads of a KV head."""
    return min(MOST_COLUMNS[head_dim], -(-readers // COLUMNS) * COLUMNS)


def choose_packed_blocks(
    head_dim: int, readers: int, keys: int, programs: int
) -> HopperPackedBlocks:
    """Chooses the sizes.

    Shares are so large that each writes little compared with what it reads.

    Args:
      head_dim: 64, 128 or 256.
      readers: query heads of a KV head.
      keys: how many keys the cache can hold.
      programs: how many programs run for one share.
    """
    columns = columns_of(readers, head_dim)
    warpgroups = 3 if head_dim < 256 and columns <= 16 else 2
    stages = RING // (warpgroups * TOKENS * head_dim * 17 // 16)
    shares = choose_shares(programs, most=max(1, keys // (64 * warpgroups * columns)))
    return HopperPackedBlocks(warpgroups=warpgroups, stages=stages, shares=shares)

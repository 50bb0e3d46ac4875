"""Says how the Hopper kernels cut their work."""

import dataclasses

HEAD_DIMS = (64, 128, 256)
MULTIPROCESSORS = 132
ROWS = 64  # rows of a wgmma, and so of a warpgroup
WARPGROUPS = 2  # warpgroups that compute; one more copies
TILE = ROWS * WARPGROUPS
COMPUTE_REGISTERS, COPY_REGISTERS = 240, 24  # per thread; 65536 in all
SHARED_MEMORY = 232448  # bytes a program of a Hopper GPU can have


def _check_block(block: int) -> None:
    if block < 1 or block % ROWS:
        raise ValueError(f"block={block} must be a multiple of {ROWS}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ring:
    """Says how a ring of blocks in shared memory is cut.

    Attributes:
      block: tokens that one step takes from shared memory.
      stages: how many blocks shared memory holds, of keys or queries.
      value_stages: how many blocks it holds of values or cotangents.
      overlapped: whether dq multiplies one block while the scores of the next are computed, which
        takes more registers.
    """

    block: int
    stages: int
    value_stages: int
    overlapped: bool = True

    def __post_init__(self):
        _check_block(self.block)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HopperBlocks:
    """Says how the kernels for sequences cut their work.

    A program of any kernel has `TILE` tokens (`tile_dkv` in that of dk and dv) and goes through the
    others in blocks.

    Attributes:
      forward: rings of keys and values in the forward.
      dq: rings of keys and values in the kernel of dq.
      dkv: rings of queries and cotangents.
      tile_dkv: keys of a program; with 64 its two warpgroups have half of the head dimension each.
    """

    forward: Ring
    dq: Ring
    dkv: Ring
    tile_dkv: int

    def __post_init__(self):
        if self.tile_dkv not in (ROWS, TILE):
            raise ValueError(f"tile_dkv={self.tile_dkv}; {ROWS} and {TILE} are accepted")
        least = {"forward": (1, 2), "dq": (3 if self.dq.overlapped else 1, 1), "dkv": (2, 1)}
        for name, wanted in least.items():  # with fewer a kernel would wait for itself
            ring = getattr(self, name)
            if ring.stages < wanted[0] or ring.value_stages < wanted[1]:
                raise ValueError(
                    f"{name} has {ring.stages} stages and {ring.value_stages} value_stages; it "
                    f"needs at least {wanted[0]} and {wanted[1]}"
                )


def choose_blocks(head_dim: int) -> HopperBlocks:
    """Chooses sizes that fit one multiprocessor's registers and shared memory."""
    ring = lambda block, stages: Ring(block=block, stages=stages, value_stages=stages)
    if head_dim == 256:
        return HopperBlocks(
            forward=ring(64, 2),
            dq=Ring(block=64, stages=2, value_stages=1, overlapped=False),
            dkv=ring(64, 2),
            tile_dkv=ROWS,
        )
    stages = 2 if head_dim == 128 else 4
    return HopperBlocks(
        forward=ring(128, stages), dq=ring(64, 2 * stages), dkv=ring(64, 2 * stages), tile_dkv=TILE
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class HopperDecodeBlocks:
    """Says how the decode kernel cuts its work.

    Attributes:
      block: keys of a step.
      stages: how many blocks of keys, and as many of values, shared memory holds.
      shares: programs among which the keys of a row are divided.
    """

    block: int
    stages: int
    shares: int

    def __post_init__(self):
        _check_block(self.block)
        if self.stages < 1 or self.shares < 1:
            raise ValueError(f"stages={self.stages} and shares={self.shares} must be positive")


def choose_decode_blocks(
    head_dim: int, readers: int, keys: int, programs: int
) -> HopperDecodeBlocks:
    """Chooses the sizes of the decode kernel.

    Shares are so large that each writes little compared with what it reads.

    Args:
      head_dim: 64, 128 or 256.
      readers: query heads of a KV head.
      keys: how many keys the cache can hold.
      programs: how many programs run for one share.
    """
    shares = choose_shares(programs, most=max(1, keys // max(256, 64 * readers)))
    block, stages = {64: (128, 4), 128: (128, 2), 256: (64, 2)}[head_dim]
    return HopperDecodeBlocks(block=block, stages=stages, shares=shares)


def choose_shares(programs: int, *, most: int) -> int:
    """Returns how many shares to divide the keys of each of `programs` into, at most `most`.

    They are many enough to busy all multiprocessors.
    """
    rounds = lambda shares: -(-programs * shares // MULTIPROCESSORS) / shares
    shares = 1
    for more in range(2, most + 1):
        if rounds(more) < 0.95 * rounds(shares):
            shares = more
    return shares

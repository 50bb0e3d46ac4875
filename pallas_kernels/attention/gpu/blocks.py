"""How the Hopper kernels cut their work."""

import dataclasses

HEAD_DIMS = (64, 128, 256)
ROWS = 64  # of a wgmma, hence of a warpgroup
WARPGROUPS = 2  # that compute; one more copies
TILE = ROWS * WARPGROUPS
COMPUTE_REGISTERS, COPY_REGISTERS = 240, 24  # of a thread; 65536 in all
SHARED_MEMORY = 232448  # bytes a program of a Hopper GPU can have


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ring:
    """Attributes:
    block: tokens that one step takes from shared memory.
    stages: how many blocks shared memory holds, of keys or queries.
    value_stages: of values or cotangents.
    """

    block: int
    stages: int
    value_stages: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
    """A program of any kernel has `TILE` tokens (`tile_dkv` in that of dk and dv) and goes through
    the others in blocks.

    Attributes:
      forward: rings of keys and values.
      dq: likewise.
      dkv: rings of queries and cotangents.
      tile_dkv: keys of a program; with 64 its two warpgroups have half of the head dimension each.
    """

    forward: Ring
    dq: Ring
    dkv: Ring
    tile_dkv: int


def choose_blocks(head_dim: int) -> Blocks:
    """For one multiprocessor's registers and shared memory, which bound all sizes."""
    ring = lambda block, stages, value_stages=None: Ring(
        block=block, stages=stages, value_stages=value_stages or stages
    )
    if head_dim == 256:
        return Blocks(forward=ring(64, 2), dq=ring(64, 2, 1), dkv=ring(64, 2), tile_dkv=ROWS)
    stages = 2 if head_dim == 128 else 4
    return Blocks(
        forward=ring(128, stages),
        dq=ring(64, 2 * stages),
        dkv=ring(64, 2 * stages),
        tile_dkv=TILE,
    )

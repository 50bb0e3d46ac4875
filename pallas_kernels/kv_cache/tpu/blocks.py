"""Chooses how the TPU kernel over an encoded cache cuts its work."""

import dataclasses

from pallas_kernels.attention.problem import Problem
from pallas_kernels.attention.tpu.blocks import LANES
from pallas_kernels.attention.tpu.decode_blocks import BLOCK_BYTES, SUBLANES
from pallas_kernels.attention.tpu.heads import used
from pallas_kernels.tpu_devices import TWO_CORES


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuPackedBlocks:
    """Says how the kernel cuts its work.

    Attributes:
      keys: positions of a step, complete lanes.
      splits: programs that share the positions of a row.
    """

    keys: int
    splits: int = 1

    def __post_init__(self):
        if self.keys < LANES or self.keys % LANES or self.splits < 1:
            raise ValueError(
                f"keys={self.keys} must be a positive multiple of {LANES} and "
                f"splits={self.splits} positive"
            )


def choose_packed_blocks(problem: Problem, batch: int, device_kind: str) -> TpuPackedBlocks:
    """Chooses equal steps long enough to hide their latency, and two programs for two cores."""
    bytes_a_key = len(used(problem.kv_head_of_query)) * problem.H // 2
    least = -(-problem.S * bytes_a_key // BLOCK_BYTES)
    even = (n for n in range(least, 2 * least + 1) if problem.S % (n * LANES) == 0)
    steps = next(even, least)
    return TpuPackedBlocks(
        keys=-(-problem.S // (steps * LANES)) * LANES,
        splits=2 if batch == 1 and device_kind in TWO_CORES else 1,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tile:
    """Lists KV heads whose query heads share the rows of a product.

    Attributes:
      kv_heads: the KV heads, by their place among those that are read.
      queries: the query head of each row; rows that fill a tile repeat the first.
      owners: for each row, the place of its KV head in `kv_heads`.
      first: first row of the tile among the rows of all tiles.
    """

    kv_heads: tuple[int, ...]
    queries: tuple[int, ...]
    owners: tuple[int, ...]
    first: int

    @property
    def rows(self) -> slice:
        return slice(self.first, self.first + len(self.queries))


def tiles_of(kv_head_of_query: tuple[int, ...]) -> tuple[Tile, ...]:
    """Puts KV heads together while their query heads fit into one tile of 8 rows."""
    readers = [
        [n for n, kv in enumerate(kv_head_of_query) if kv == head]
        for head in used(kv_head_of_query)
    ]
    sets: list[list[int]] = []
    for place, queries in enumerate(readers):
        if sets and sum(len(readers[x]) for x in sets[-1]) + len(queries) <= SUBLANES:
            sets[-1].append(place)
        else:
            sets.append([place])
    tiles: list[Tile] = []
    for places in sets:
        rows = [(n, i) for i, place in enumerate(places) for n in readers[place]]
        rows += rows[:1] * (-len(rows) % SUBLANES)
        queries, owners = zip(*rows, strict=True)
        first = tiles[-1].rows.stop if tiles else 0
        tiles.append(Tile(kv_heads=tuple(places), queries=queries, owners=owners, first=first))
    return tuple(tiles)

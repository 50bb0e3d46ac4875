"""Says which process writes which rows of the cache, and fetches them from the devices."""

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from hydrahead_jax.sharding import Layout


def whole_rows(layout: Layout) -> NamedSharding:
    """Returns the sharding that splits rows as in batches, and no row itself."""
    return NamedSharding(layout.mesh, PartitionSpec(("data", "fsdp")))


def rows_of_writers(layout: Layout | None, batch: int) -> dict[int, tuple[int, ...]]:
    """Returns the rows of a batch that each process writes; the first that has a row writes it."""
    if layout is None:
        return {0: tuple(range(batch))}
    writer = dict.fromkeys(range(batch), jax.process_count())
    for device, (rows,) in whole_rows(layout).devices_indices_map((batch,)).items():
        for row in range(batch)[rows]:
            writer[row] = min(writer[row], device.process_index)
    found: dict[int, list[int]] = {}
    for row, process in writer.items():
        found.setdefault(process, []).append(row)
    return {process: tuple(rows) for process, rows in sorted(found.items())}


def local_values(x: jax.Array, rows: tuple[int, ...]) -> np.ndarray:
    """Fetches those rows of an array that has the sharding of `whole_rows`, or one device."""
    values = {}
    for shard in x.addressable_shards:
        held = range(x.shape[0])[shard.index[0]]
        if values.keys() >= set(held):
            continue
        values |= dict(zip(held, np.asarray(shard.data), strict=True))
    return np.stack([values[row] for row in rows])

"""Runs functions as the real GPU compiler gets them, and checks what it made of Hopper kernels."""

import jax
import jax.numpy as jnp

from pallas_kernels.attention.gpu.blocks import SHARED_MEMORY
from pallas_kernels.hardware.gpu import GpuProgram


def with_gradients(run, *arrays):
    results, pull = jax.vjp(run, *arrays)
    return results, pull(jax.tree.map(jnp.ones_like, results))


def by_shards(run, *arrays):
    """Runs under `jax.shard_map` over the chips of the mesh in use, as training does."""
    shard = jax.sharding.PartitionSpec("chip")
    mesh = jax.sharding.get_abstract_mesh()
    return jax.shard_map(run, mesh=mesh, in_specs=shard, out_specs=shard)(*arrays)


def queries_and_keys(heads: tuple[int, ...], length: int, head_dim: int, batch: int = 1):
    """Returns the shapes of queries, keys and values; `heads` are the KV heads of query heads."""
    return tuple(
        jax.ShapeDtypeStruct((batch, length, count, head_dim), jnp.bfloat16)
        for count in (len(heads), max(heads) + 1, max(heads) + 1)
    )


def names(program: GpuProgram) -> set[str]:
    return {kernel.name.rsplit("_", 1)[0] for kernel in program.kernels}


def assert_compiled_well(program: GpuProgram, *, loops: bool = True) -> None:
    """Checks spills, memory and matrix products of every kernel; `loops`: in their loops too."""
    for kernel in program.kernels:
        assert kernel.spill_bytes == 0, kernel.name
        assert kernel.shared_memory <= SHARED_MEMORY, kernel.name
        assert kernel.wgmma > 0 and (not loops or kernel.loop.wgmma > 0), kernel.name
        assert not [note for note in kernel.notes if "serialized" in note], kernel.name

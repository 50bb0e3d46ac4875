"""Compiles the Hopper kernels of slot attention with the real compiler, without a GPU."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import slot_attention
from pallas_kernels.attention.gpu.blocks import SHARED_MEMORY
from pallas_kernels.hardware.gpu import compile_for_h200

HEADS = (0, 1, 1, 1)
KERNELS = ("totals", "states", "outputs", "errors", "written", "gates")


def shapes(length: int, head_dim: int, batch: int = 1):
    array = jax.ShapeDtypeStruct
    queries, keys = (
        array((batch, length, heads, head_dim), jnp.bfloat16)
        for heads in (len(HEADS), max(HEADS) + 1)
    )
    return queries, keys, keys, array((*keys.shape[:3], 64), jnp.float32)


def forward(*arrays):
    settings = dict(shift=32, kv_head_of_query=HEADS, implementation="gpu")
    out_BTNH, lse_BTN, state = slot_attention(*arrays, **settings)
    return out_BTNH, lse_BTN, *state[:2]


def forward_and_backward(*arrays):
    results, pull = jax.vjp(forward, *arrays)
    return results, pull(jax.tree.map(jnp.ones_like, results))


def forward_and_backward_by_shards(*arrays):
    shard = jax.sharding.PartitionSpec("chip")
    mesh = jax.sharding.get_abstract_mesh()
    return jax.shard_map(forward_and_backward, mesh=mesh, in_specs=shard, out_specs=shard)(*arrays)


@pytest.mark.gpu_compiler
def test_forward_and_backward_compile_without_spills():
    """Under `jax.shard_map`, as training runs them."""
    program = compile_for_h200(forward_and_backward_by_shards, *shapes(8192, 128))
    kernels = program.kernels
    assert {x.name.rsplit("_", 1)[0] for x in kernels} == {f"slot_attention_{x}" for x in KERNELS}
    for kernel in kernels:
        assert kernel.spill_bytes == 0, kernel.name
        assert kernel.shared_memory <= SHARED_MEMORY, kernel.name
        assert kernel.wgmma > 0 and kernel.loop.wgmma > 0, kernel.name
        assert not [note for note in kernel.notes if "serialized" in note], kernel.name

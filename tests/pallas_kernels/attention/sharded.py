"""Runs an implementation under shard_map on eight devices.

`python -m tests.pallas_kernels.attention.sharded NAME` prints how far it is from itself on one
device, as JSON.
"""

import functools
import json
import sys

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from pallas_kernels import attention
from tests.pallas_kernels.attention.cases import Case, Inputs, make_inputs
from tests.pallas_kernels.attention.implementations import IMPLEMENTATIONS, error_ratios
from tests.pallas_kernels.attention.oracle import Results, cotangents

SHARD_HEADS = (0, 0, 1)  # of the KV heads of one shard


def errors(name: str, mesh: Mesh) -> dict[str, float]:
    implementation = IMPLEMENTATIONS[name]
    in_mosaic = name == "tpu"  # its interpreters do not follow what varies over the mesh
    interpret = in_mosaic or implementation.interpret()
    shards = mesh.shape["head"]
    case = Case(
        name="sharded",
        batch=4,
        length=40,
        keys=60,
        kv_heads=2 * shards,
        kv_head_of_query=tuple(2 * i + head for i in range(shards) for head in SHARD_HEADS),
        head_dim=(implementation.head_dims or (16,))[0],
        q_start=20,
        segments="packed",
        dtype=implementation.dtypes[0],
    )
    inputs = make_inputs(case)

    def run(heads, q, k, v, q_start, ids, kv_ids):
        return attention(
            q,
            k,
            v,
            kv_head_of_query=heads,
            q_start=q_start,
            segment_ids_BT=ids,
            kv_segment_ids_BS=kv_ids,
            return_lse=True,
            implementation=name,
            interpret=interpret,
        )

    heads, rows = PartitionSpec("row", None, "head"), PartitionSpec("row")
    of_shards = jax.shard_map(
        functools.partial(run, SHARD_HEADS),
        mesh=mesh,
        in_specs=(heads, heads, heads, PartitionSpec(), rows, rows),
        out_specs=(heads, heads),
        check_vma=not in_mosaic,
    )
    whole = functools.partial(run, case.kv_head_of_query)
    found, wanted = (
        Results(*map(np.asarray, jax.jit(functools.partial(with_gradients, f))(inputs)))
        for f in (of_shards, whole)
    )
    return error_ratios(found, wanted)


def with_gradients(run, inputs: Inputs):
    outputs, pull = jax.vjp(lambda *x: run(*x, *inputs[3:]), *inputs[:3])
    return *outputs, *pull(cotangents(inputs))


def main() -> None:
    rows, heads = (1, 1) if sys.argv[1] == "gpu" else (4, 2)  # its interpreter has one device
    devices = np.array(jax.devices()[: rows * heads])
    mesh = Mesh(devices.reshape(rows, heads), ("row", "head"))
    print(json.dumps(errors(sys.argv[1], mesh)))


if __name__ == "__main__":
    main()

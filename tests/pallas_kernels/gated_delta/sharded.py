"""Runs an implementation under shard_map on eight devices.

`python -m tests.pallas_kernels.gated_delta.sharded NAME` prints how far it is from itself
on one device, as JSON.
"""

import functools
import json
import sys

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from pallas_kernels import gated_delta
from tests.pallas_kernels.gated_delta.cases import Case, Inputs, make_inputs
from tests.pallas_kernels.gated_delta.implementations import IMPLEMENTATIONS
from tests.pallas_kernels.gated_delta.oracle import cotangents
from tests.tolerances import error_ratio


def errors(name: str, mesh: Mesh) -> dict[str, float]:
    size = (IMPLEMENTATIONS[name].head_dims or (16,))[0]
    dtype = IMPLEMENTATIONS[name].dtypes[0]
    case = Case(
        name="sharded", length=20, batch=4, key_dim=size, value_dim=size, value_heads=2, dtype=dtype
    )
    inputs = make_inputs(case)
    heads = PartitionSpec("row", None, "head")
    state = PartitionSpec("row", "head")
    interpret = IMPLEMENTATIONS[name].interpret()
    run = functools.partial(gated_delta, implementation=name, interpret=interpret)
    of_shards = jax.shard_map(run, mesh=mesh, in_specs=heads, out_specs=(heads, state))
    found = jax.jit(functools.partial(with_gradients, of_shards, inputs))()
    wanted = jax.jit(functools.partial(with_gradients, run, inputs))()
    fields = ("out", "state", "dq", "dk", "dv", "dlog_decay", "dbeta")
    return {f: error_ratio(*pair) for f, *pair in zip(fields, found, wanted, strict=True)}


def with_gradients(run, inputs: Inputs):
    outputs, pull = jax.vjp(run, *inputs[:5])
    return *outputs, *pull(cotangents(inputs))


def main() -> None:
    rows, heads = (1, 1) if sys.argv[1] == "gpu" else (4, 2)  # its interpreter has one device
    devices = np.array(jax.devices()[: rows * heads])
    mesh = Mesh(devices.reshape(rows, heads), ("row", "head"))
    print(json.dumps(errors(sys.argv[1], mesh)))


if __name__ == "__main__":
    main()

"""Runs an implementation under shard_map on eight devices.

`python -m tests.pallas_kernels.kit.sharded OP NAME` prints how far it is from itself on one device,
as JSON.
"""

import functools
import json
import sys

import jax
import numpy as np
from jax.sharding import Mesh

from tests.pallas_kernels.kit.ops import SUITES
from tests.pallas_kernels.kit.suite import Suite, finite_ratio, outputs_and_gradients


def errors(suite: Suite, name: str, mesh: Mesh) -> dict[str, float]:
    """Returns the error ratio of each result, with the results on one device as the exact ones."""
    implementation, checked = suite.implementations[name], name not in suite.vma_unchecked
    interpret = implementation.interpret() if checked else True
    run = suite.sharded(implementation, interpret, mesh.shape["head"])
    shard = functools.partial(jax.shard_map, mesh=mesh, check_vma=checked)
    of_shards = shard(run.of_shard, in_specs=run.in_specs, out_specs=run.out_specs)

    def results(fn):
        inputs = run.inputs[: run.given]
        differentiable = min(run.given, len(suite.gradients))
        both = functools.partial(outputs_and_gradients, fn, differentiable)
        return map(np.asarray, jax.jit(both)(inputs, suite.cotangents(run.inputs)))

    pairs = zip(suite.limits, results(of_shards), results(run.complete), strict=False)
    return {field: finite_ratio(*pair) for field, *pair in pairs}


def main(op: str, name: str) -> None:
    rows, heads = (1, 1) if name == "gpu" else (4, 2)  # its interpreter has one device
    devices = np.array(jax.devices()[: rows * heads])
    mesh = Mesh(devices.reshape(rows, heads), ("row", "head"))
    print(json.dumps(errors(SUITES[op], name, mesh)))


if __name__ == "__main__":
    main(*sys.argv[1:])

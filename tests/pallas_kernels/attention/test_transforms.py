"""Runs every implementation under jit, vmap, jax.checkpoint and shard_map."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import quick
from tests.pallas_kernels.attention.cases import Case, in_dtype, make_inputs, wide
from tests.pallas_kernels.attention.implementations import (
    IMPLEMENTATIONS,
    assert_results,
    call,
    names,
)
from tests.pallas_kernels.attention.oracle import Results, cotangents, float64_results
from tests.root import ROOT

STARTS = (45, -30, 200)


def case_of(name: str) -> Case:
    implementation = IMPLEMENTATIONS[name]
    if implementation.unavailable:
        pytest.skip(f"{name}: {implementation.unavailable}")
    case = Case(name="transformed", length=70, keys=160, segments="mixed", traced=True)
    if implementation.is_kernel:
        case = wide(case, implementation.head_dims[0])
    return in_dtype(case, implementation.dtypes[0])


@names
def test_vmap_and_rematerialisation_change_nothing(name):
    """Queries, their positions and segments are mapped; keys and values are shared."""
    case = case_of(name)
    inputs, interpret = make_inputs(case), IMPLEMENTATIONS[name].is_kernel  # without race detection
    run = call(name, case, interpret)
    remat = jax.checkpoint if name != "gpu" else lambda f: f  # its interpreter supports no remat

    def results(q, k, v, q_start, *ids):
        outputs, pull = jax.vjp(remat(lambda q, k, v: run(q, k, v, q_start, *ids)), q, k, v)
        return *outputs, *pull(cotangents(inputs))

    scales = jnp.array([1.0, 0.5, 2.0], inputs.q_BTNH.dtype)
    queries = inputs.q_BTNH * scales[:, None, None, None, None]
    ids = jnp.stack([inputs.segment_ids_BT, inputs.segment_ids_BT, 1 + 0 * inputs.segment_ids_BT])
    axes = (0, None, None, 0, 0, None)
    found = jax.jit(jax.vmap(results, in_axes=axes))(
        queries, *inputs[1:3], jnp.array(STARTS), ids, inputs.kv_segment_ids_BS
    )
    for i, start in enumerate(STARTS):
        one = inputs._replace(q_BTNH=queries[i], q_start=jnp.int32(start), segment_ids_BT=ids[i])
        actual = Results(*(np.asarray(x[i]) for x in found))
        assert_results(actual, float64_results(one, case), case.dtype)


@names
def test_shards_of_rows_and_heads_equal_the_whole(name):
    """Rows are split over four devices, KV heads with their query heads over two.

    All devices have the same q_start.
    """
    case = case_of(name)
    process = subprocess.run(
        [sys.executable, "-m", "tests.pallas_kernels.attention.sharded", name],
        cwd=ROOT,
        env=quick.environment(devices=8),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    errors = json.loads(process.stdout.splitlines()[-1])
    assert set(errors) == set(Results._fields)
    assert max(errors.values()) < (1e-6 if case.dtype == "float32" else 1e-3), errors

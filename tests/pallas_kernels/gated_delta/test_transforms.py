"""Runs every implementation under jit, vmap, jax.checkpoint and shard_map."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import gated_delta
from tests import quick
from tests.pallas_kernels.gated_delta.cases import Case, make_inputs, wide
from tests.pallas_kernels.gated_delta.implementations import (
    IMPLEMENTATIONS,
    assert_results,
    expected,
    names,
)
from tests.pallas_kernels.gated_delta.oracle import Results, cotangents
from tests.root import ROOT
from tests.tolerances import KERNEL, error_ratio

GRADIENTS = Results._fields[2:]
SMALL = Case(name="transformed", length=40)


def case_of(name: str) -> Case:
    implementation = IMPLEMENTATIONS[name]
    if implementation.unavailable:
        pytest.skip(f"{name}: {implementation.unavailable}")
    if not implementation.head_dims:
        return SMALL
    case = dataclasses.replace(wide(SMALL, implementation.head_dims[0]), value_heads=1)
    return dataclasses.replace(case, dtype=implementation.dtypes[0])


@names
def test_vmap_and_rematerialisation_change_nothing(name):
    case = case_of(name)
    inputs = make_inputs(case)
    out_bar, state_bar = cotangents(inputs)
    interpret = IMPLEMENTATIONS[name].is_kernel  # without the callbacks that look for races
    remat = jax.checkpoint if name != "gpu" else lambda f: f  # its interpreter supports no remat

    @remat
    def loss(*arrays):
        out, state = gated_delta(
            *arrays[:5], initial_state_BNHP=arrays[5], implementation=name, interpret=interpret
        )
        return jnp.sum(out * out_bar) + jnp.sum(state * state_bar)

    scales = jnp.array([1.0, 0.5], inputs[0].dtype)
    stacked = [inputs[0] * scales[:, None, None, None, None], *inputs[1:6]]
    gradients = jax.jit(jax.vmap(jax.grad(loss, argnums=range(6)), in_axes=(0,) + (None,) * 5))
    found = gradients(*stacked)
    first = dict(zip(GRADIENTS, (x[0] for x in found), strict=True))
    assert_results(expected(case)._replace(**first), case)
    assert error_ratio(found[0][1], expected(case).dq) < KERNEL[case.dtype].gradient


@names
def test_shards_of_rows_and_heads_equal_the_whole(name):
    """Rows are split over four devices, heads over two.

    There is no initial state; it then varies over no device.
    """
    case = case_of(name)
    process = subprocess.run(
        [sys.executable, "-m", "tests.pallas_kernels.gated_delta.sharded", name],
        cwd=ROOT,
        env=quick.environment(devices=8),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    errors = json.loads(process.stdout.splitlines()[-1])
    assert set(errors) == {"out", "state", "dq", "dk", "dv", "dlog_decay", "dbeta"}
    assert max(errors.values()) < (1e-6 if case.dtype == "float32" else 1e-3), errors

"""Runs every implementation of every op on its cases, against float64, and through transforms."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import quick
from tests.pallas_kernels.kit.ops import SUITES
from tests.pallas_kernels.kit.suite import Suite, outputs_and_gradients
from tests.root import ROOT
from tests.tolerances import KERNEL, error_ratio

EVERY = [
    pytest.param(
        suite,
        x.name,
        case,
        marks=() if case.name == suite.smoke else x.marks,
        id=f"{op}-{x.name}-{case.name}, {case.dtype}",
    )
    for op, suite in SUITES.items()
    for x in suite.implementations.values()
    for case in x.cases
]
TESTED = [
    pytest.param(suite, x.name, marks=x.marks, id=f"{op}-{x.name}")
    for op, suite in SUITES.items()
    for x in suite.implementations.values()
    if not x.own_tests
]
implementations = pytest.mark.parametrize(("suite", "name"), TESTED)


def marks_of(tested, form) -> tuple:
    """Returns the marks of a test of padding.

    Mosaic GPU's interpreter takes a quarter of a minute for a form, and "mixed" has them all.
    """
    is_heavy = tested.values[1] == "gpu" and form.name != "mixed"
    return (*tested.marks, pytest.mark.heavy) if is_heavy else tested.marks


PADDINGS = [
    pytest.param(*tested.values, form, marks=marks_of(tested, form), id=f"{tested.id}-{form.name}")
    for tested in TESTED
    for form in tested.values[0].forms
    if form.name == form.segments
]


@pytest.mark.parametrize(("suite", "name", "case"), EVERY)
def test_results_and_gradients_equal_float64(suite: Suite, name, case):
    results, inputs = suite.found(name, case), suite.make_inputs(case)
    suite.assert_results(results, suite.expected(case), case.dtype)
    dtypes = [x.dtype for x in inputs[: len(suite.gradients)]]
    assert [getattr(results, x).dtype for x in suite.gradients] == dtypes
    out, *others = results[: -len(dtypes)]
    assert out.dtype == jnp.dtype(case.dtype)
    assert {x.dtype for x in others} == {jnp.dtype("float32")}


@pytest.mark.parametrize(("suite", "name", "case"), PADDINGS)
def test_padding_reads_and_writes_nothing(suite: Suite, name, case):
    """Values on padding do not change the results, and gradients there are zero.

    In plain JAX the results stay the same bit for bit.
    """
    case = suite.in_shape_of(name, case)
    inputs, trace = suite.make_inputs(case), suite.implementations[name].padding_trace
    padding = {field: np.asarray(getattr(inputs, ids)) == 0 for field, ids in suite.ids.items()}
    dirty = {}
    for field, padding_BT in padding.items():
        x = getattr(inputs, field)
        mask = padding_BT.reshape(padding_BT.shape + (1,) * (x.ndim - 2))
        dirty[field] = jnp.where(mask, suite.dirt, x)
    clean = suite.found(name, case)
    for actual, wanted in zip(suite.run(name, inputs._replace(**dirty), case), clean, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=trace)
    for output, value in suite.at_padding.items():
        assert np.all(getattr(clean, output)[padding[inputs._fields[0]]] == value)
    for gradient, field in zip(suite.gradients, inputs._fields, strict=False):
        if field in padding:
            assert np.all(np.abs(getattr(clean, gradient)[padding[field]]) <= trace)


@implementations
def test_packed_documents_equal_separate_documents(suite: Suite, name):
    """Separate documents lie at the start of a row."""
    case = suite.form(name, "packed")
    packed, inputs = suite.found(name, case), suite.make_inputs(case)
    limit = 1e-6 if case.dtype == "float32" else KERNEL["bfloat16"].forward
    ids_BT = np.asarray(inputs.segment_ids_BT)
    rows_B1 = np.arange(len(ids_BT))[:, None]
    for segment in (1, 2, 3):
        start_B1 = np.argmax(ids_BT == segment, axis=1)[:, None]
        columns_BT = (start_B1 + np.arange(ids_BT.shape[1])) % ids_BT.shape[1]
        turn = lambda x, columns_BT=columns_BT: np.asarray(x)[rows_B1, columns_BT]
        own_BT = turn(ids_BT) == segment
        changed = {field: jnp.asarray(turn(getattr(inputs, field))) for field in suite.ids}
        changed |= dict.fromkeys(suite.ids.values(), jnp.asarray(own_BT, jnp.int32))
        changed |= {x: getattr(inputs, x) * (segment == 1) for x in suite.first_only}
        alone = suite.run(name, inputs._replace(**changed), case)
        for output in suite.at_padding:
            found, wanted = getattr(alone, output), turn(getattr(packed, output))
            assert error_ratio(found[own_BT], wanted[own_BT]) < limit
    for output in suite.last_only:
        assert error_ratio(getattr(alone, output), getattr(packed, output)) < limit


@implementations
def test_vmap_and_rematerialisation_change_nothing(suite: Suite, name):
    """What varies is mapped; the other inputs are shared."""
    case, implementation = suite.in_shape_of(name, suite.transformed), suite.implementations[name]
    if implementation.unavailable:
        pytest.skip(f"{name}: {implementation.unavailable}")
    inputs = suite.make_inputs(case)
    run = suite.call(name, implementation.is_kernel, *suite.static(case))  # no search for races
    if implementation.rematerialises:
        run = jax.checkpoint(run)
    cotangents, differentiable = suite.cotangents(inputs), len(suite.gradients)
    variants = suite.variants(inputs)
    columns = list(zip(*variants, strict=True))
    axes = tuple(None if all(x is column[0] for x in column) else 0 for column in columns)
    mapped = [x[0] if axis is None else jnp.stack(x) for x, axis in zip(columns, axes, strict=True)]
    results = lambda *x: outputs_and_gradients(run, differentiable, x, cotangents)
    found = jax.jit(jax.vmap(results, in_axes=axes))(*mapped)
    for i, variant in enumerate(variants):
        actual = suite.results(*(np.asarray(x[i]) for x in found))
        suite.assert_results(actual, suite.exact(variant, case), case.dtype)


@implementations
def test_shards_of_rows_and_heads_equal_the_whole(suite: Suite, name):
    """Rows are split over four devices, heads over two."""
    if reason := suite.implementations[name].unavailable:
        pytest.skip(f"{name}: {reason}")
    process = subprocess.run(
        [sys.executable, "-m", "tests.pallas_kernels.kit.sharded", suite.name, name],
        cwd=ROOT,
        env=quick.environment(devices=8),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    errors = json.loads(process.stdout.splitlines()[-1])
    outputs = len(suite.limits) - len(suite.gradients)
    assert len(errors) > outputs + 2
    float32 = suite.implementations[name].dtypes[0] == "float32"
    assert max(errors.values()) < (1e-6 if float32 else 1e-3), errors

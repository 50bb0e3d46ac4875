"""Checks what the gated delta rule promises beside the common tests of all ops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from pallas_kernels import gated_delta, gated_delta_step
from pallas_kernels.gated_delta.chunked import ChunkedBlocks
from pallas_kernels.gated_delta.tpu.blocks import TpuBlocks
from tests.pallas_kernels.gated_delta.cases import Case, make_inputs
from tests.pallas_kernels.gated_delta.oracle import float64_results
from tests.pallas_kernels.gated_delta.suite import GATED_DELTA
from tests.tolerances import error_ratio


def test_blocks_that_are_not_used_are_refused():
    arrays = make_inputs(Case(name="blocks", length=4))[:5]
    for name, other in (("chunked", "ChunkedBlocks is accepted"), ("gpu", "it has none to choose")):
        with pytest.raises(NotImplementedError, match=f"{name}: blocks is TpuBlocks; {other}"):
            gated_delta(*arrays, implementation=name, blocks=TpuBlocks(heads=2))
    with pytest.raises(ValueError, match="a chunk of 48 is not 16 times a power of two"):
        gated_delta(*arrays, implementation="chunked", blocks=ChunkedBlocks(chunk=48))
    with pytest.raises(ValueError, match="chunk=0; a chunk has at least one token"):
        ChunkedBlocks(chunk=0)


def test_memory_that_a_kernel_leaves_unwritten_reads_as_nan():
    """The TPU interpreter does so by default; the cases above rely on it to find such memory."""

    def half(out_ref):
        out_ref[0] = jnp.zeros_like(out_ref[0])

    interpret = GATED_DELTA.implementations["tpu"].interpret()
    assert interpret.detect_races
    shape = jax.ShapeDtypeStruct((2, 8, 128), jnp.float32)
    written = pl.pallas_call(half, out_shape=shape, interpret=interpret)()
    assert np.all(written[0] == 0) and np.all(np.isnan(written[1]))


@GATED_DELTA.names
def test_an_initial_state_belongs_to_the_first_document_only(name):
    case = GATED_DELTA.form(name, "packed")
    results, inputs = GATED_DELTA.found(name, case), make_inputs(case)
    doubled = inputs._replace(state_BNHP=inputs.state_BNHP * 2)
    other = GATED_DELTA.run(name, doubled, case)
    changed_BT = np.any(results.out != other.out, axis=(2, 3))
    assert not np.any(changed_BT & np.asarray(inputs.segment_ids_BT != 1))
    assert np.all(changed_BT[:, :16])  # later tokens may forget it


@pytest.mark.parametrize("name", ["chunked", "reference"])
def test_a_state_handed_over_at_any_point_equals_one_pass(name):
    """The other part is padding, so that every split shares one compiled function."""
    inputs = make_inputs(Case(name="split", length=40, segments="middle padding"))

    @jax.jit
    def two_passes(split):
        before_T = jnp.arange(40) < split
        run = lambda state, mask_T: gated_delta(
            *inputs[:5],
            initial_state_BNHP=state,
            segment_ids_BT=jnp.where(mask_T, inputs.segment_ids_BT, 0),
            implementation=name,
        )
        first_BTNP, state = run(inputs.state_BNHP, before_T)
        second_BTNP, state = run(state, ~before_T)
        return first_BTNP + second_BTNP, state

    exact = float64_results(inputs)
    for split in range(41):
        out_BTNP, state = two_passes(split)
        assert error_ratio(out_BTNP, exact.out) < 1e-6
        assert error_ratio(state, exact.state) < 1e-6


def test_steps_equal_a_sequence():
    inputs = make_inputs(Case(name="steps", length=40))
    step = jax.jit(gated_delta_step)
    state, outputs = inputs.state_BNHP, []
    for t in range(40):
        out, state = step(*(x[:, t] for x in inputs[:5]), state)
        outputs.append(out)
    exact = float64_results(inputs)
    assert error_ratio(jnp.stack(outputs, axis=1), exact.out) < 1e-6
    assert error_ratio(state, exact.state) < 1e-6

"""Compiled once for each shape, shared by the tests of this folder."""

import functools

from pallas_kernels import gated_delta
from tests.kernels.cases import Case, make_inputs
from tests.kernels.oracle import Results, float64_results, with_gradients


@functools.cache
def implementation(name: str):
    """Inputs -> Results of one registered implementation."""

    def run(q, k, v, log_decay, beta, state, segment_ids):
        return gated_delta(
            q,
            k,
            v,
            log_decay,
            beta,
            initial_state_BNHP=state,
            segment_ids_BT=segment_ids,
            implementation=name,
        )

    return with_gradients(run)


@functools.cache
def expected(case: Case) -> Results:
    return float64_results(make_inputs(case))

"""Benchmarks the decode step of softmax attention: what share of the bandwidth it reaches."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import attention
from benchmarks.contestant import Contestant
from pallas_kernels import attention_decode
from pallas_kernels.attention.shapes import DecodeShape
from pallas_kernels.report.attention_decode import flops, implementations, inputs, least_bytes
from tests.pallas_kernels.attention.cases import HEADS, LOGITS, VISIBILITY, Case, make_inputs
from tests.pallas_kernels.attention.oracle import Results, float64_results

__all__ = ["contestants", "flops", "hostile_cases", "least_bytes", "shapes", "too_far"]
LINEAR = True  # time is linear in the length
LENGTHS = (300, 129, 0, 1)  # lengths of the rows of a case


class Outputs(NamedTuple):
    """Holds the results of a step, which is never differentiated."""

    out: np.ndarray
    lse: np.ndarray


def shapes(**sizes) -> list[DecodeShape]:
    return [DecodeShape(sequence=sequence) for sequence in attention.shapes(**sizes)]


def hostile_cases(head_size: int) -> list[Case]:
    """Returns hostile cases in bf16 at the head size that is timed.

    Rows have several lengths, one of which is empty.
    """
    sizes = dict(length=1, keys=300, batch=4, head_dim=head_size, dtype="bfloat16")
    windows = [case for case in VISIBILITY if case.window and case.segments == "none"]
    logits = [dataclasses.replace(case, segments="none") for case in LOGITS]
    return [dataclasses.replace(case, **sizes) for case in (*HEADS, *windows, *logits)]


def too_far(actual: Outputs, exact: Results) -> list[str]:
    """Names the outputs that miss the bounds of tests/tolerances.py, and by how much."""
    return attention.too_far(exact._replace(**actual._asdict()), exact)


def contestants(names: list[str] | None = None) -> list[Contestant]:
    """Returns those named; without names, all of ours."""
    cpu = jax.default_backend() == "cpu"
    return [_ours(name) for name in names or implementations() if cpu or name != "reference"]


def _ours(name: str) -> Contestant:
    def results(case: Case) -> Outputs:
        given = _inputs(case)
        outputs = _run(name, case, given.q_BTNH[:, 0], *given[1:3], given.q_start + 1)
        return Outputs(*(np.asarray(x[:, None]) for x in outputs))

    def exact(case: Case) -> Results:
        return float64_results(_inputs(case), case)

    def calls(shape: DecodeShape):
        arrays = inputs(shape, "forward")
        step = jax.jit(lambda *x: _run(name, shape.sequence, *x))
        return lambda: step(*arrays), None

    return Contestant(name=name, results=results, exact=exact, calls=calls)


def _inputs(case: Case):
    """Makes the inputs of a step; q_start is the position of each row's query."""
    return make_inputs(case)._replace(q_start=jnp.array(LENGTHS, jnp.int32) - 1)


def _run(name: str, case, q_BNH, k_BSKH, v_BSKH, lengths_B):
    return attention_decode(
        q_BNH,
        k_BSKH,
        v_BSKH,
        lengths_B,
        kv_head_of_query=case.kv_head_of_query,
        window=case.window,
        scale=getattr(case, "scale", None),
        return_lse=True,
        implementation=name,
    )

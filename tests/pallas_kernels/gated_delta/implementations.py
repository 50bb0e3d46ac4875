"""Lists what each implementation takes, how it runs without an accelerator, and its cases.

Functions are compiled once for each shape and shared by the tests of this folder.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import gated_delta
from pallas_kernels.hopper.machine import OLDEST_JAX
from tests.pallas_kernels.gated_delta.cases import (
    CASES,
    FORMS,
    HEADS,
    LENGTHS,
    Case,
    in_dtype,
    make_inputs,
    wide,
)
from tests.pallas_kernels.gated_delta.oracle import Results, float64_results, with_gradients
from tests.tolerances import KERNEL, cosine, error_ratio


@dataclasses.dataclass(frozen=True, kw_only=True)
class Implementation:
    """Describes an implementation of the gated delta rule and what it is tested on.

    Attributes:
      name: name in `gated_delta(..., implementation=...)`.
      cases: cases of the test suite; `tests.pallas_kernels.gated_delta.error_table` measures many
        more.
      interpret: makes the interpreter's parameters, for kernels.
      head_dims: head sizes that it takes; any size if empty.
      dtypes: dtypes of q, k and v that it takes.
      padding_trace: largest effect of a padding token on any number; kernels that divide by the
        write strength take 0 as 1e-30.
      unavailable: why it cannot run here, if so.
    """

    name: str
    cases: tuple[Case, ...]
    interpret: Callable[[], Any] = lambda: False
    head_dims: tuple[int, ...] = ()
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    padding_trace: float = 0.0
    unavailable: str = ""

    @property
    def is_kernel(self) -> bool:
        return bool(self.head_dims)

    @property
    def marks(self) -> tuple:
        """Returns the marks of tests that run the implementation."""
        return (pytest.mark.interpreter(self.name),) if self.is_kernel else ()

    def takes(self, case: Case) -> bool:
        sizes = {case.key_dim, case.value_dim}
        return case.dtype in self.dtypes and (not self.head_dims or sizes <= set(self.head_dims))

    def __call__(self, case: Case) -> Results:
        if self.unavailable:
            pytest.skip(f"{self.name}: {self.unavailable}")
        return self.run(make_inputs(case))

    @property
    def run(self) -> Callable:
        """Returns the compiled function: Inputs -> Results."""
        return _compiled(self.name)


def _both(cases) -> tuple[Case, ...]:
    return tuple(in_dtype(case, dtype) for dtype in ("float32", "bfloat16") for case in cases)


def _wide(cases, size: int) -> tuple[Case, ...]:
    return tuple(wide(case, size) for case in cases)


def _no_hopper_kernels() -> str:
    if jax.__version_info__ < OLDEST_JAX:
        return f"the Hopper kernels need jax 0.11, this is {jax.__version__}"
    return ""


_ONE_HEAD = dataclasses.replace(
    wide(Case(name="1 head, H=128", length=65), 128), value_heads=1, dtype="bfloat16"
)
IMPLEMENTATIONS = {
    x.name: x
    for x in (
        Implementation(name="chunked", cases=(*CASES, *_both(FORMS)[len(FORMS) :])),
        Implementation(name="reference", cases=(LENGTHS[0], HEADS[1], *_both(FORMS))),
        Implementation(
            name="tpu",
            cases=(*_both(_wide(FORMS, 64)), _ONE_HEAD),
            interpret=lambda: pltpu.InterpretParams(detect_races=True),
            head_dims=(64, 128, 256),
            padding_trace=1e-25,
        ),
        Implementation(
            name="gpu",
            cases=(),
            interpret=lambda: True,
            head_dims=(128, 64),
            dtypes=("bfloat16",),
            unavailable=_no_hopper_kernels(),
        ),
    )
}


names = pytest.mark.parametrize(
    "name", [pytest.param(x.name, marks=x.marks) for x in IMPLEMENTATIONS.values()]
)


@functools.cache
def _compiled(name: str):
    interpret = IMPLEMENTATIONS[name].interpret()

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
            interpret=interpret,
        )

    return with_gradients(run)


@functools.cache
def expected(case: Case) -> Results:
    return float64_results(make_inputs(case))


def bounds(dtype: str) -> dict[str, float]:
    """Returns the largest allowed error ratio of each result."""
    limits = KERNEL[dtype]
    return (
        dict.fromkeys(("out", "state"), limits.forward)
        | dict.fromkeys(("dq", "dk", "dv", "dstate"), limits.gradient)
        | dict.fromkeys(("dlog_decay", "dbeta"), limits.gate_gradient)
    )


def error_ratios(actual: Results, case: Case) -> dict[str, float]:
    return {
        name: error_ratio(getattr(actual, name), exact)
        for name, exact in expected(case)._asdict().items()
    }


def assert_results(actual: Results, case: Case) -> None:
    limits, exact = bounds(case.dtype), expected(case)
    ratios = error_ratios(actual, case)
    assert not {name: ratio for name, ratio in ratios.items() if not ratio <= limits[name]}
    for name in ("dlog_decay", "dbeta"):
        assert cosine(getattr(actual, name), getattr(exact, name)) >= KERNEL[case.dtype].gate_cosine

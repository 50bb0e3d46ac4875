"""Lists what each implementation takes, how it runs without an accelerator, and its cases.

Functions are compiled once for each shape and shared by the tests of this folder.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import attention
from pallas_kernels.hopper.machine import OLDEST_JAX
from tests.pallas_kernels.attention.cases import (
    CASES,
    FORMS,
    Case,
    Inputs,
    in_dtype,
    make_inputs,
    wide,
)
from tests.pallas_kernels.attention.oracle import Results, float64_results, with_gradients
from tests.tolerances import KERNEL, error_ratio


@dataclasses.dataclass(frozen=True, kw_only=True)
class Implementation:
    """Describes an implementation of attention and what it is tested on.

    Attributes:
      name: name in `attention(..., implementation=...)`.
      cases: cases of the test suite; `tests.pallas_kernels.attention.error_table` measures many
        more.
      interpret: makes the interpreter's parameters, for kernels.
      head_dims: head sizes that it takes; any size if empty.
      dtypes: dtypes of q, k and v that it takes.
      unavailable: why it cannot run here, if so.
    """

    name: str
    cases: tuple[Case, ...]
    interpret: Callable[[], Any] = lambda: False
    head_dims: tuple[int, ...] = ()
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    unavailable: str = ""

    @property
    def is_kernel(self) -> bool:
        return bool(self.head_dims)

    @property
    def marks(self) -> tuple:
        """Returns the marks of tests that run the implementation."""
        return (pytest.mark.interpreter(self.name),) if self.is_kernel else ()

    def takes(self, case: Case) -> bool:
        fits = not self.head_dims or case.head_dim in self.head_dims
        return fits and case.dtype in self.dtypes

    def __call__(self, case: Case) -> Results:
        return self.run(make_inputs(case), case)

    def run(self, inputs: Inputs, case: Case) -> Results:
        """Runs other inputs with the case's settings."""
        if self.unavailable:
            pytest.skip(f"{self.name}: {self.unavailable}")
        return _compiled(self.name, *_settings(case))(inputs)


def both(cases) -> tuple[Case, ...]:
    cases = tuple(cases)
    return tuple(in_dtype(case, dtype) for dtype in ("float32", "bfloat16") for case in cases)


_TPU_SIZES = tuple(
    in_dtype(wide(Case(name=f"T={length}, H={size}", length=length), size), "bfloat16")
    for length, size in ((1, 128), (127, 128), (129, 256), (1000, 128))
)
IMPLEMENTATIONS = {
    x.name: x
    for x in (
        Implementation(name="chunked", cases=(*CASES, *both(FORMS)[len(FORMS) :])),
        Implementation(name="reference", cases=(*CASES, in_dtype(FORMS[0], "bfloat16"))),
        Implementation(
            name="tpu",
            cases=(*both(wide(case, 64) for case in FORMS), *_TPU_SIZES),
            interpret=lambda: pltpu.InterpretParams(detect_races=True),
            head_dims=(64, 128, 256),
        ),
    )
}
_HOPPER = Implementation(  # with tests of its own, because its interpreter is slow
    name="gpu",
    cases=(),
    interpret=lambda: True,
    head_dims=(64, 128, 256),
    dtypes=("bfloat16",),
    unavailable=""
    if jax.__version_info__ >= OLDEST_JAX
    else f"the Hopper kernels need jax 0.11, this is {jax.__version__}",
)
MEASURED = IMPLEMENTATIONS | {_HOPPER.name: _HOPPER}


names = pytest.mark.parametrize(
    "name", [pytest.param(x.name, marks=x.marks) for x in IMPLEMENTATIONS.values()]
)


def call(name: str, case: Case, interpret) -> Callable:
    """Returns (q, k, v, q_start, segment ids, key segment ids) -> (out, lse)."""
    return _call(name, interpret, *_settings(case))


def _settings(case: Case):
    start = None if case.traced else case.q_start
    return case.kv_head_of_query, case.causal, case.window, case.scale, start


def _call(name, interpret, heads, causal, window, scale, start) -> Callable:
    def run(q, k, v, q_start, segment_ids, kv_segment_ids):
        return attention(
            q,
            k,
            v,
            kv_head_of_query=heads,
            causal=causal,
            window=window,
            segment_ids_BT=segment_ids,
            kv_segment_ids_BS=kv_segment_ids,
            q_start=q_start if start is None else start,
            scale=scale,
            return_lse=True,
            implementation=name,
            interpret=interpret,
        )

    return run


@functools.cache
def _compiled(name: str, *settings):
    return with_gradients(_call(name, MEASURED[name].interpret(), *settings))


@functools.cache
def expected(case: Case) -> Results:
    return float64_results(make_inputs(case), case)


def bounds(dtype: str) -> dict[str, float]:
    """Returns the largest allowed error ratio of each result."""
    limits = KERNEL[dtype]
    return dict.fromkeys(("out", "lse"), limits.forward) | dict.fromkeys(
        ("dq", "dk", "dv"), limits.gradient
    )


def error_ratios(actual: Results, exact: Results) -> dict[str, float]:
    """Returns the error ratio of each result.

    The log-sum-exp is compared where a query sees a key. Its ratio is infinite where actual and
    exact results disagree on which queries see none.
    """
    ratios = {
        name: error_ratio(getattr(actual, name), getattr(exact, name))
        for name in ("out", "dq", "dk", "dv")
    }
    seen_BTN = np.isfinite(exact.lse)
    same = np.array_equal(np.isneginf(actual.lse), ~seen_BTN)
    lse = error_ratio(np.where(seen_BTN, actual.lse, 0), np.where(seen_BTN, exact.lse, 0))
    return ratios | {"lse": lse if same else np.inf}


def assert_results(actual: Results, exact: Results, dtype: str) -> None:
    """Checks that results are within bounds, and exactly 0 where a query sees nothing."""
    limits = bounds(dtype)
    ratios = error_ratios(actual, exact)
    assert not {name: ratio for name, ratio in ratios.items() if not ratio <= limits[name]}
    blind_BTN = np.isneginf(exact.lse)
    assert not np.any(actual.out[blind_BTN]) and not np.any(actual.dq[blind_BTN])
    for gradient, wanted in ((actual.dk, exact.dk), (actual.dv, exact.dv)):
        unseen_BSK = ~np.any(wanted, axis=-1)
        assert not np.any(gradient[unseen_BSK])

"""Measures every implementation on every case.

Command: `python -m tests.pallas_kernels.gated_delta.error_table [NAME ...]`.

Each number is the worst of a few error ratios: "forward" of output and final state, "gradients" of
q, k, v and the initial state, "gates" of log decay and beta; "angle" is 1 less the cosine between
the gate gradients and the exact ones. Numbers over the bounds of `tests/tolerances.py` are printed
in bold, and then it fails.
"""

import dataclasses
import sys

import jax
import numpy as np

from tests.pallas_kernels.gated_delta.cases import Case, in_dtype, wide_cases
from tests.pallas_kernels.gated_delta.implementations import (
    IMPLEMENTATIONS,
    Implementation,
    error_ratios,
    expected,
)
from tests.pallas_kernels.gated_delta.oracle import Results
from tests.pallas_kernels.report.tables import print_table
from tests.tolerances import KERNEL, cosine

LONG_DRAWS = 4
LONG = {
    f"{keys} keys, beta {beta or 'random'}": Case(
        name=keys, keys=keys, beta=beta, length=1000, key_dim=64, log_decay=0.0
    )
    for keys, beta in (
        ("random", None),
        ("identical", 1.0),
        ("identical", 2.0),
        ("identical, rounded", 2.0),
        ("cosine 0.9", 0.9),
        ("cosine 0.9", 2.0),
    )
}
COLUMNS = {
    "forward": ("out", "state"),
    "gradients": ("dq", "dk", "dv", "dstate"),
    "gates": ("dlog_decay", "dbeta"),
    "angle": (),
}


def bounds(dtype: str) -> dict[str, float]:
    limits = KERNEL[dtype]
    numbers = (limits.forward, limits.gradient, limits.gate_gradient, 1 - limits.gate_cosine)
    return dict(zip(COLUMNS, numbers, strict=True))


def worst(results: Results, case: Case) -> dict[str, float]:
    """Returns one number for each column; NaN if any is."""
    ratios, exact = error_ratios(results, case), expected(case)
    angles = [1 - cosine(getattr(results, f), getattr(exact, f)) for f in COLUMNS["gates"]]
    numbers = {
        name: float(np.max([ratios[field] for field in fields], initial=0.0))
        for name, fields in COLUMNS.items()
    }
    return numbers | {"angle": float(np.max(angles, initial=0.0))}


def measure(implementation: Implementation) -> bool:
    """Prints a table and returns whether all numbers are within bounds."""
    size = (implementation.head_dims or (64,))[0]
    rows = {}
    for case in wide_cases(size):
        of_dtype = [in_dtype(case, dtype) for dtype in implementation.dtypes]
        if all(map(implementation.takes, of_dtype)):
            rows[case.name] = {x.dtype: worst(implementation(x), x) for x in of_dtype}
    print(f"{implementation.name}, H = P = {size} if nothing else is said:\n")
    return print_table(rows, {dtype: bounds(dtype) for dtype in implementation.dtypes})


def measure_long(name: str) -> None:
    """Prints the worst of several draws of a long sequence without decay."""
    rows = {}
    for label, case in LONG.items():
        draws = [dataclasses.replace(case, name=f"{case.name} {i}") for i in range(LONG_DRAWS)]
        numbers = [worst(IMPLEMENTATIONS[name](draw), draw) for draw in draws]
        rows[label] = {
            "float32": {column: float(np.max([x[column] for x in numbers])) for column in COLUMNS}
        }
    print(f"{name}, T = 1000, H = 64, P = 8, no decay, worst of {LONG_DRAWS} draws:\n")
    print_table(rows, {"float32": bounds("float32")})


def main(names: list[str]) -> int:
    print(f"jax {jax.__version__}, {jax.default_backend()}\n")
    within = True
    for name in names or IMPLEMENTATIONS:
        implementation = IMPLEMENTATIONS[name]
        if implementation.unavailable:
            print(f"{name}: not measured, {implementation.unavailable}\n")
            continue
        within &= measure(implementation)
        if not implementation.is_kernel:
            measure_long(name)
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Measures every implementation of attention on every case.

Command: `python -m tests.pallas_kernels.attention.error_table [NAME ...]`.

Each number is an error ratio or the worst of several: "forward" of the output, "lse" of the
log-sum-exp, "gradients" of q, k and v through both. Numbers over the bounds of
`tests/tolerances.py` are printed in bold, and then it fails.
"""

import sys

import jax
import numpy as np

from tests.pallas_kernels.attention.cases import in_dtype, wide_cases
from tests.pallas_kernels.attention.implementations import (
    MEASURED,
    Implementation,
    error_ratios,
    expected,
)
from tests.pallas_kernels.report.tables import print_table
from tests.tolerances import KERNEL

COLUMNS = {"forward": ("out",), "lse": ("lse",), "gradients": ("dq", "dk", "dv")}


def bounds(dtype: str) -> dict[str, float]:
    limits = KERNEL[dtype]
    return {"forward": limits.forward, "lse": limits.forward, "gradients": limits.gradient}


def measure(implementation: Implementation) -> bool:
    """Prints a table and returns whether all numbers are within bounds."""
    size = (implementation.head_dims or (64,))[0]
    rows = {}
    for case in wide_cases(size):
        of_dtype = [in_dtype(case, dtype) for dtype in implementation.dtypes]
        if all(map(implementation.takes, of_dtype)):
            rows[case.name] = {}
            for x in of_dtype:
                ratios = error_ratios(implementation(x), expected(x))
                rows[case.name][x.dtype] = {
                    name: float(np.max([ratios[field] for field in fields]))
                    for name, fields in COLUMNS.items()
                }
    print(f"{implementation.name}, H = {size} if nothing else is said:\n")
    return print_table(rows, {dtype: bounds(dtype) for dtype in implementation.dtypes})


def main(names: list[str]) -> int:
    print(f"attention, jax {jax.__version__}, {jax.default_backend()}\n")
    within = True
    for name in names or MEASURED:
        implementation = MEASURED[name]
        if implementation.unavailable:
            print(f"{name}: not measured, {implementation.unavailable}\n")
            continue
        within &= measure(implementation)
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

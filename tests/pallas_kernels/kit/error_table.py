"""Measures every implementation of every op on every case, for docs/numerics.md.

Command: `python -m tests.pallas_kernels.kit.error_table [--op OP] [NAME ...]`.

Each number is an error ratio or the worst of several; "angle" is 1 less the cosine between gate
gradients and the exact ones. Numbers over the bounds of `tests/tolerances.py` are printed in bold,
and then it fails.
"""

import argparse
import sys

import jax
import numpy as np

from tests.pallas_kernels.kit.cases import in_dtype
from tests.pallas_kernels.kit.implementation import Implementation
from tests.pallas_kernels.kit.ops import SUITES
from tests.pallas_kernels.kit.suite import Suite
from tests.tolerances import KERNEL, cosine


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--op", choices=SUITES)
    parser.add_argument("names", nargs="*", help="implementations; all if none is named")
    options = parser.parse_args(arguments)
    within = True
    for suite in [SUITES[options.op]] if options.op else SUITES.values():
        print(f"{suite.name}, jax {jax.__version__}, {jax.default_backend()}\n")
        for name in options.names or suite.implementations:
            implementation = suite.implementations[name]
            if implementation.unavailable:
                print(f"{name}: not measured, {implementation.unavailable}\n")
                continue
            within &= measure(suite, implementation)
            if suite.draws and not implementation.is_kernel:
                measure_draws(suite, name)
    return 0 if within else 1


def measure(suite: Suite, implementation: Implementation) -> bool:
    """Prints a table and returns whether all numbers are within bounds."""
    size = (implementation.head_dims or (64,))[0]
    rows = {}
    for case in suite.wide_cases(size):
        of_dtype = [in_dtype(case, dtype) for dtype in implementation.dtypes]
        if all(map(implementation.takes, of_dtype)):
            rows[case.name] = {x.dtype: worst(suite, implementation.name, x) for x in of_dtype}
    print(f"{implementation.name}, {suite.sizes} = {size} if nothing else is said:\n")
    return print_table(rows, {dtype: bounds(suite, dtype) for dtype in implementation.dtypes})


def measure_draws(suite: Suite, name: str) -> None:
    """Prints the worst of several draws of each of the suite's cases of many draws."""
    rows = {}
    for label, cases in suite.draws.items():
        found = [worst(suite, name, case) for case in cases]
        rows[label] = {
            "float32": {column: float(np.max([x[column] for x in found])) for column in found[0]}
        }
    print(f"{name}, {suite.draws_title}:\n")
    print_table(rows, {"float32": bounds(suite, "float32")})


def worst(suite: Suite, name: str, case) -> dict[str, float]:
    """Returns one number for each column; NaN if any is."""
    results, exact = suite.found(name, case), suite.expected(case)
    ratios = suite.error_ratios(results, exact)
    numbers = {
        column: float(np.max([ratios[field] for field in fields]))
        for column, fields in suite.columns.items()
    }
    angles = [1 - cosine(getattr(results, f), getattr(exact, f)) for f in suite.angles]
    return numbers | ({"angle": float(np.max(angles, initial=0.0))} if angles else {})


def bounds(suite: Suite, dtype: str) -> dict[str, float]:
    of_fields = suite.bounds(dtype)
    numbers = {column: of_fields[fields[0]] for column, fields in suite.columns.items()}
    return numbers | ({"angle": 1 - KERNEL[dtype].gate_cosine} if suite.angles else {})


def print_table(
    rows: dict[str, dict[str, dict[str, float]]], bounds: dict[str, dict[str, float]]
) -> bool:
    """Prints rows {label: {dtype: numbers}}, numbers over their bound in bold.

    Args:
      bounds: {dtype: {column: the largest number}}, in the order of the columns.

    Returns:
      Whether every number is within its bound.
    """
    within = True

    def cell(numbers: dict[str, float], dtype: str) -> list[str]:
        nonlocal within
        fits = {name: number <= bounds[dtype][name] for name, number in numbers.items()}
        within &= all(fits.values())
        return [f"{x:.0e}" if fits[name] else f"**{x:.0e}**" for name, x in numbers.items()]

    titles = [f"{dtype} {name}" for dtype, of_dtype in bounds.items() for name in of_dtype]
    print("| case | " + " | ".join(titles) + " |")
    print("|---|" + "---|" * len(titles))
    for label, of_dtype in rows.items():
        cells = [text for dtype in bounds for text in cell(of_dtype[dtype], dtype)]
        print(f"| {label} | " + " | ".join(cells) + " |")
    print(flush=True)
    return within


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

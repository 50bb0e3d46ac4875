"""Measures every implementation on every case: `python -m tests.kernels.error_table [NAME ...]`.

Numbers over the bound of `tests/tolerances.py` are printed in bold, and then it fails.
"""

import dataclasses
import sys

import jax

from tests.kernels.cases import Case, in_dtype, wide_cases
from tests.kernels.implementations import IMPLEMENTATIONS, Implementation, bounds, error_ratios
from tests.kernels.oracle import Results

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


def print_table(rows: dict[str, dict[str, float]], dtype: str) -> bool:
    """Whether every number is within its bound."""
    limits = bounds(dtype)
    bold = lambda name, ratio: f"{ratio:.0e}" if ratio <= limits[name] else f"**{ratio:.0e}**"
    print("| case | " + " | ".join(Results._fields) + " |")
    print("|---|" + "---|" * len(Results._fields))
    for label, ratios in rows.items():
        print(f"| {label} | " + " | ".join(bold(*item) for item in ratios.items()) + " |")
    print(flush=True)
    return all(ratio <= limits[name] for row in rows.values() for name, ratio in row.items())


def measure(implementation: Implementation) -> bool:
    """Prints a table for each dtype. Whether all is within bounds."""
    size = (implementation.head_dims or (64,))[0]
    within = True
    for dtype in implementation.dtypes:
        cases = [in_dtype(case, dtype) for case in wide_cases(size)]
        print(f"{implementation.name}, {dtype}, H = P = {size} if nothing else is said:\n")
        taken = [case for case in cases if implementation.takes(case)]
        rows = {case.name: error_ratios(implementation(case), case) for case in taken}
        within &= print_table(rows, dtype)
    return within


def measure_long(name: str) -> None:
    """The worst of several draws of a long sequence without decay."""
    print(f"{name}, float32, T = 1000, no decay, worst of {LONG_DRAWS} draws:\n")
    rows = {}
    for label, case in LONG.items():
        draws = [dataclasses.replace(case, name=f"{case.name} {i}") for i in range(LONG_DRAWS)]
        ratios = [error_ratios(IMPLEMENTATIONS[name](draw), draw) for draw in draws]
        rows[label] = {field: max(r[field] for r in ratios) for field in Results._fields}
    print_table(rows, "float32")


def main(names: list[str]) -> int:
    print(f"jax {jax.__version__}, {jax.default_backend()}\n")
    within = True
    for name in names or IMPLEMENTATIONS:
        implementation = IMPLEMENTATIONS[name]
        if implementation.unavailable:
            print(f"{name}: not measured, {implementation.unavailable}\n")
            continue
        within &= measure(implementation)
        if name in ("chunked", "reference"):
            measure_long(name)
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Prints the measured errors of the chunked rule: `python -m tests.kernels.error_table`."""

import dataclasses

import jax

from tests.kernels.cases import BFLOAT16, HOSTILE, LENGTHS, SEGMENTS, Case, make_inputs
from tests.kernels.implementations import expected, implementation
from tests.kernels.oracle import Results
from tests.tolerances import error_ratio

LONG = [
    dataclasses.replace(case, name=f"{case.name}, T=1000, H=64", length=1000, key_dim=64)
    for case in (LENGTHS[-1], *HOSTILE[:5])
]


def row(case: Case, name: str = "chunked") -> str:
    actual, exact = implementation(name)(make_inputs(case)), expected(case)
    ratios = (error_ratio(getattr(actual, f), getattr(exact, f)) for f in Results._fields)
    return f"| {case.name} | " + " | ".join(f"{ratio:.0e}" for ratio in ratios) + " |"


def main() -> None:
    print(f"jax {jax.__version__}, {jax.default_backend()}\n")
    print("| case | " + " | ".join(Results._fields) + " |")
    print("|---|" + "---|" * len(Results._fields))
    for case in [LENGTHS[-1], SEGMENTS[-1], *HOSTILE, *BFLOAT16, *LONG]:
        print(row(case))


if __name__ == "__main__":
    main()

"""Prints the measured errors of the chunked rule: `python -m tests.kernels.error_table`."""

import dataclasses

import jax

from tests.kernels.cases import BFLOAT16, HOSTILE, LENGTHS, SEGMENTS, Case, make_inputs
from tests.kernels.implementations import expected, implementation
from tests.kernels.oracle import Results
from tests.tolerances import error_ratio

LONG_DRAWS = 4
LONG = {
    f"{case.keys} keys, beta {case.beta or 'random'}, no decay": dataclasses.replace(
        case, length=1000, key_dim=64, log_decay=0.0
    )
    for case in (LENGTHS[-1], HOSTILE[0], HOSTILE[1], HOSTILE[3], HOSTILE[4])
}


def ratios(case: Case, name: str) -> list[float]:
    actual, exact = implementation(name)(make_inputs(case)), expected(case)
    return [error_ratio(getattr(actual, f), getattr(exact, f)) for f in Results._fields]


def long_ratios(case: Case, name: str) -> list[float]:
    """The worst of several draws of a long sequence."""
    draws = [dataclasses.replace(case, name=f"{case.name} {i}") for i in range(LONG_DRAWS)]
    return [max(column) for column in zip(*(ratios(c, name) for c in draws), strict=True)]


def table(rows: dict[str, list[float]]) -> None:
    print("| case | " + " | ".join(Results._fields) + " |")
    print("|---|" + "---|" * len(Results._fields))
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{ratio:.0e}" for ratio in row) + " |")
    print()


def main() -> None:
    print(f"jax {jax.__version__}, {jax.default_backend()}\n")
    short = [LENGTHS[-1], SEGMENTS[-1], *HOSTILE, *BFLOAT16]
    table({case.name: ratios(case, "chunked") for case in short})
    for name in ("chunked", "reference"):
        print(f"{name}, T = 1000, H = 64, worst of {LONG_DRAWS} draws:\n")
        table({label: long_ratios(case, name) for label, case in LONG.items()})


if __name__ == "__main__":
    main()

"""Makes what the report's ops share: their programs, and the chips of a table."""

import functools
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax

from pallas_kernels.hardware.bundles import Known

TPUS = ("v5e", "v5p", "v6e", "tpu7x")


def program(op: ModuleType, shape: Any, implementation: str, passes: str):
    """Returns a function that other processes can import, and the shapes of its arguments."""
    run = op.forward if passes == "forward" else op.forward_backward
    arguments = jax.eval_shape(functools.partial(op.program_inputs, shape, passes))
    return functools.partial(run, implementation, shape), arguments


def known(shape: Any, implementation: str, passes: str, chip: str) -> Mapping[str, Known]:
    """Returns what a kernel's schedule does not say: nothing where every step does the same."""
    return {}


def side_by_side(x):
    """Puts heads side by side, [B, T, N * H], as the projections around an op write and read them.

    A TPU would have to copy [B, T, N, H] into that order, which no model asks of it.
    """
    return x.reshape(*x.shape[:2], -1)


def chips_worth_a_row(implementation: str, **others: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the chips for which `--all-targets` compiles an implementation.

    A kernel is compiled for the chips where it runs, plain JAX for one TPU and the GPU because its
    programs take minutes, and the reference for none.

    Args:
      others: chips of implementations that an op has beside these.
    """
    known = {"tpu": TPUS, "gpu": ("h200",), "reference": ()} | others
    return known.get(implementation, ("v6e", "h200"))

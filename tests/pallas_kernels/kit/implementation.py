"""Describes an implementation of an op: what it takes, and how it runs without an accelerator."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.hopper.machine import OLDEST_JAX


@dataclasses.dataclass(frozen=True, kw_only=True)
class Implementation:
    """Describes an implementation of an op and what it is tested on.

    Attributes:
      name: the public function's `implementation=...`.
      cases: cases of the test suite; `error_table` measures many more.
      interpret: makes the interpreter's parameters, for kernels.
      head_dims: head sizes that it takes; any size if empty.
      dtypes: dtypes of q, k and v that it takes.
      padding_trace: largest effect of a padding token on any number.
      rematerialises: whether it runs under `jax.checkpoint` here.
      own_tests: whether the op's folder has tests of its own in place of the common ones.
      is_heavy: whether the common tests take minutes; the op's folder then has cheaper ones.
      unavailable: why it cannot run here, if so.
    """

    name: str
    cases: tuple = ()
    interpret: Callable[[], Any] = lambda: False
    head_dims: tuple[int, ...] = ()
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    padding_trace: float = 0.0
    rematerialises: bool = True
    own_tests: bool = False
    is_heavy: bool = False
    unavailable: str = ""

    @property
    def is_kernel(self) -> bool:
        return bool(self.head_dims)

    @property
    def marks(self) -> tuple:
        """Returns the marks of tests that run the implementation."""
        if self.name == "reference":
            return (pytest.mark.only_in("test", "sequential, the same with another jax"),)
        heavy = (pytest.mark.heavy,) * self.is_heavy
        return (pytest.mark.interpreter(self.name), *heavy) if self.is_kernel else ()

    def takes(self, case) -> bool:
        sizes_fit = not self.head_dims or case.head_sizes <= set(self.head_dims)
        return sizes_fit and case.dtype in self.dtypes


def tpu_kernels(*, cases: tuple, **settings) -> Implementation:
    """Describes Pallas kernels for TPU, whose interpreter finds races."""
    return Implementation(
        name="tpu",
        cases=cases,
        interpret=lambda: pltpu.InterpretParams(detect_races=True),
        head_dims=(64, 128, 256),
        **settings,
    )


def hopper_kernels(*, head_dims: tuple[int, ...], **settings) -> Implementation:
    """Describes Mosaic GPU kernels; their interpreter is slow and has no rematerialisation."""
    old = jax.__version_info__ < OLDEST_JAX
    return Implementation(
        name="gpu",
        interpret=lambda: True,
        head_dims=head_dims,
        dtypes=("bfloat16",),
        rematerialises=False,
        unavailable=f"the Hopper kernels need jax 0.11, this is {jax.__version__}" if old else "",
        **settings,
    )

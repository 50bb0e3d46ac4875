"""Describes one implementation of an op in the benchmark: ours, or another's if installed."""

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contestant:
    """Describes one implementation of an op.

    Attributes:
      name: name in the tables.
      results: computes the results of a test case.
      exact: computes the exact results of a test case, in float64.
      calls: Shape -> a function that runs the forward pass, and one that runs the backward pass
        after one forward pass; None where it has no backward pass.
      wait: blocks until the results of such calls are there.
      takes: whether it promises to get a case right.
      may_refuse: whether it may refuse some of those cases; these are then not checked.
      peer: whether it is another project's, to be compared with.
    """

    name: str
    results: Callable[[Any], tuple]
    exact: Callable[[Any], tuple]
    calls: Callable[[Any], tuple[Callable, Callable | None]]
    wait: Callable = jax.block_until_ready
    takes: Callable[[Any], bool] = lambda case: True
    may_refuse: bool = False
    peer: bool = False


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None

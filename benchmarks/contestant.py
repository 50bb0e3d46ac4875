"""One implementation of an op in the benchmark: ours, or another's where it is installed."""

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contestant:
    """Attributes:
    results: what it makes of a test case.
    exact: what it should make of it, in float64.
    calls: Shape -> what runs its forward, and its backward after one forward; None without one.
    wait: blocks until the results of such calls are there.
    takes: whether it promises to get a case right.
    may_refuse: some cases of those; what it refuses is not checked.
    peer: whether it is another's, to be compared with.
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

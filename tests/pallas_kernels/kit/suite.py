"""Defines what an op says of itself to get the common tests, error table and sharded runs.

A new op describes itself by one `Suite` and adds it to `kit.ops`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from tests.pallas_kernels.kit.cases import in_dtype
from tests.pallas_kernels.kit.implementation import Implementation
from tests.tolerances import KERNEL, cosine, error_ratio


class Sharded(NamedTuple):
    """Describes a run under `jax.shard_map` over the mesh axes "row" and "head".

    Attributes:
      inputs: as the suite makes them.
      given: how many of them, the first ones, are passed.
      of_shard: runs the op on a shard of the inputs.
      complete: runs the op on the inputs.
    """

    inputs: Any
    given: int
    of_shard: Callable
    complete: Callable
    in_specs: Any
    out_specs: Any


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Suite:
    """Describes an op.

    A case says shapes and contents of inputs. It has `name`, `dtype` and `head_sizes`. Inputs and
    Results are NamedTuples; the last results are gradients of the first inputs, in their order.

    Attributes:
      name: name in test ids and tables.
      implementations: by name.
      call: (name, interpret, *static) -> a function of the inputs that returns the outputs.
      static: returns what of a case is known while tracing.
      make_inputs: case -> Inputs.
      cotangents: Inputs -> the cotangents of the outputs.
      exact: (Inputs, case) -> Results, in float64.
      results: type of the Results.
      limits: for each result the field of `KernelTolerance` that bounds its error ratio.
      columns: the error table's columns, and the results whose worst ratio each shows.
      angles: gradients whose cosine with the exact ones is bounded too.
      zeros: results whose rows are exactly 0 where the exact rows of another result are, or of
        themselves.
      ids: for each input that is a sequence the input with its segment ids.
      dirt: value that the padding of sequences is filled with.
      at_padding: outputs that are sequences, and their values on padding.
      first_only: inputs that belong to the first document of a row.
      last_only: outputs that belong to its last document.
      wide: (case, head size) -> the case in a shape that kernels take.
      wide_cases: head size -> the cases of the error table.
      forms: cases that share a shape.
      smoke: name of the case that runs a kernel with every version of jax.
      transformed: case of the tests of `jax.vmap`, `jax.checkpoint` and `jax.shard_map`.
      variants: Inputs -> several that differ in some fields, over which `jax.vmap` maps.
      sharded: (implementation, interpret, shards of the heads) -> a run under `jax.shard_map`.
      vma_unchecked: implementations whose interpreters do not follow what varies over a mesh.
      sizes: letters of the head size in the error table.
      draws: cases of many draws for the error table, by label; the worst of each is shown.
      draws_title: what these have in common.
    """

    name: str
    implementations: Mapping[str, Implementation]
    call: Callable[..., Callable]
    static: Callable[[Any], tuple] = lambda case: ()
    make_inputs: Callable
    cotangents: Callable
    exact: Callable
    results: type
    limits: Mapping[str, str]
    columns: Mapping[str, Sequence[str]]
    angles: Sequence[str] = ()
    zeros: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ids: Mapping[str, str]
    dirt: float
    at_padding: Mapping[str, float]
    first_only: Sequence[str] = ()
    last_only: Sequence[str] = ()
    wide: Callable
    wide_cases: Callable[[int], Sequence]
    forms: Sequence
    smoke: str
    transformed: Any
    variants: Callable
    sharded: Callable[..., Sharded]
    vma_unchecked: Sequence[str] = ()
    sizes: str = "H"
    draws: Mapping[str, Sequence] = dataclasses.field(default_factory=dict)
    draws_title: str = ""

    def __post_init__(self):
        assert tuple(self.limits) == self.results._fields

    @property
    def gradients(self) -> tuple[str, ...]:
        """Returns the gradients among the results, in the order of the inputs."""
        return tuple(name for name, limit in self.limits.items() if limit != "forward")

    @property
    def names(self):
        """Returns the mark of a test that takes the `name` of each implementation."""
        tested = (x for x in self.implementations.values() if not x.own_tests)
        return pytest.mark.parametrize(
            "name", [pytest.param(x.name, marks=x.marks) for x in tested]
        )

    def run(self, name: str, inputs, case):
        """Runs an implementation on inputs with the case's settings; compiles once a shape."""
        if reason := self.implementations[name].unavailable:
            pytest.skip(f"{name}: {reason}")
        return _compiled(self, name, *self.static(case))(inputs)

    def found(self, name: str, case):
        """Returns the results of an implementation on a case."""
        return self.run(name, self.make_inputs(case), case)

    def expected(self, case):
        return _expected(self, case)

    def in_shape_of(self, name: str, case):
        """Returns the case in a shape that the implementation takes and other tests compile."""
        implementation = self.implementations[name]
        if implementation.is_kernel:
            case = self.wide(case, implementation.head_dims[0])
        return in_dtype(case, implementation.dtypes[0])

    def form(self, name: str, form: str):
        """Returns the form of that name in a shape that the implementation takes."""
        return self.in_shape_of(name, next(case for case in self.forms if case.name == form))

    def with_gradients(self, fn):
        """Compiles `fn(*inputs) -> outputs` with its gradients: Inputs -> Results."""
        both = jax.jit(functools.partial(outputs_and_gradients, fn, len(self.gradients)))
        return lambda inputs: self.results(*map(np.asarray, both(inputs, self.cotangents(inputs))))

    def error_ratios(self, actual, exact) -> dict[str, float]:
        return {
            name: finite_ratio(getattr(actual, name), getattr(exact, name)) for name in self.limits
        }

    def bounds(self, dtype: str) -> dict[str, float]:
        """Returns the largest allowed error ratio of each result."""
        return {name: getattr(KERNEL[dtype], limit) for name, limit in self.limits.items()}

    def too_far(self, actual, exact, dtype: str) -> list[str]:
        """Names the results that miss the bounds of tests/tolerances.py, and by how much."""
        bounds, least = self.bounds(dtype), KERNEL[dtype].gate_cosine
        ratios = self.error_ratios(actual, exact)
        angles = {x: cosine(getattr(actual, x), getattr(exact, x)) for x in self.angles}
        return [
            *(f"{x} {ratios[x]:.1e} > {bounds[x]}" for x in ratios if not ratios[x] <= bounds[x]),
            *(f"cosine of {x} {angles[x]:.4f} < {least}" for x in angles if not angles[x] >= least),
        ]

    def assert_results(self, actual, exact, dtype: str) -> None:
        """Checks that results are within bounds, and exactly 0 where they must be."""
        assert not self.too_far(actual, exact, dtype)
        for name, other in self.zeros.items():
            rows = ~np.any(getattr(exact, other), axis=-1)
            assert not np.any(getattr(actual, name)[rows]), name

    def check(self, run, case) -> None:
        """Compares outputs of `run(*inputs)`, and gradients, with those of the case in float64."""
        found = self.with_gradients(run)(self.make_inputs(case))
        self.assert_results(found, self.expected(case), case.dtype)


def outputs_and_gradients(fn, differentiable: int, inputs, cotangents):
    """Returns the outputs of `fn(*inputs)`, and their gradients by the first inputs."""
    call = lambda *x: fn(*x, *inputs[differentiable:])
    outputs, pull = jax.vjp(call, *inputs[:differentiable])
    return *outputs, *pull(cotangents)


def finite_ratio(actual, exact) -> float:
    """Returns the error ratio where `exact` is not -inf; inf if `actual` is -inf elsewhere."""
    actual, exact = np.asarray(actual), np.asarray(exact)
    finite = np.isfinite(exact)
    if not np.array_equal(np.isneginf(actual), ~finite):
        return np.inf
    return error_ratio(np.where(finite, actual, 0), np.where(finite, exact, 0))


@functools.cache
def _compiled(suite: Suite, name: str, *static):
    interpret = suite.implementations[name].interpret()
    return suite.with_gradients(suite.call(name, interpret, *static))


@functools.cache
def _expected(suite: Suite, case):
    return suite.exact(suite.make_inputs(case), case)

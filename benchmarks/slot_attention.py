"""Benchmarks slot attention: our implementations, side by side."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from benchmarks.contestant import Contestant
from pallas_kernels.report.slot_attention import (
    flops,
    forward,
    implementations,
    inputs,
    least_bytes,
)
from pallas_kernels.slot_attention.shapes import Shape, shapes
from tests.pallas_kernels.slot_attention.cases import HOSTILE, SEGMENTS, Case, make_inputs
from tests.pallas_kernels.slot_attention.oracle import Results, float64_results
from tests.pallas_kernels.slot_attention.suite import SLOT_ATTENTION, call, static

__all__ = ["contestants", "flops", "hostile_cases", "least_bytes", "shapes", "too_far"]
LINEAR = True  # time is linear in the length
too_far = functools.partial(SLOT_ATTENTION.too_far, dtype="bfloat16")


def hostile_cases(head_size: int) -> list[Case]:
    """Returns hostile cases in bf16, at the timed head size."""
    sizes = {"length": 192, "batch": 1, "head_dim": head_size, "slots": 64, "dtype": "bfloat16"}
    return [dataclasses.replace(case, **sizes) for case in (SEGMENTS[0], *HOSTILE)]


def contestants(names: list[str] | None = None) -> list[Contestant]:
    """Returns those named; without names, all of ours that this machine has a device for."""
    on_cpu = jax.default_backend() == "cpu"
    timed = [name for name in implementations() if name != "reference" or on_cpu]
    return [_ours(name) for name in names or timed]


def _ours(name: str) -> Contestant:
    @functools.cache
    def compiled(settings: tuple):
        return SLOT_ATTENTION.with_gradients(call(name, False, *settings))

    return Contestant(
        name=name,
        results=lambda case: compiled(static(case))(make_inputs(case)),
        exact=_exact,
        calls=functools.partial(_calls, name),
    )


def _exact(case: Case) -> Results:
    return float64_results(make_inputs(case), case)


def _calls(name: str, shape: Shape):
    *arrays, out_cotangent, lse_cotangent = inputs(shape, "forward+backward")
    run = functools.partial(forward, name, shape)
    compiled = jax.jit(run)
    (out, _, slots), pull = jax.jit(lambda *x: jax.vjp(run, *x))(*arrays)
    zeros = jax.tree.map(jnp.zeros_like, slots)
    cotangents = (out_cotangent.reshape(out.shape), lse_cotangent, zeros)
    backward = jax.jit(lambda pull: pull(cotangents))
    return lambda: compiled(*arrays), lambda: backward(pull)

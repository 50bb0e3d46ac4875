"""Counts the FLOP of the matrix products in a traced function."""

import math

import jax
from jax.extend import core


def dot_flops(fn, *args) -> int:
    """Counts 2 FLOP per multiply-add of each dot_general that a result needs, loops unrolled."""
    return _flops(jax.make_jaxpr(fn)(*args).jaxpr)


def _flops(jaxpr: core.Jaxpr) -> int:
    """Counts the FLOP of a jaxpr, without work whose results nothing reads."""
    needed = {x for x in jaxpr.outvars if isinstance(x, core.Var)}
    total = 0
    for equation in reversed(jaxpr.eqns):
        if not needed.intersection(equation.outvars) and not equation.effects:
            continue
        needed |= {x for x in equation.invars if isinstance(x, core.Var)}
        total += _equation(equation)
    return total


def _equation(equation) -> int:
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        size = math.prod(equation.outvars[0].aval.shape)
        return 2 * size * math.prod(left[axis] for axis in contracted)
    inner = [
        getattr(value, "jaxpr", value)
        for value in equation.params.values()
        if isinstance(value, (core.Jaxpr, core.ClosedJaxpr))
    ]
    return equation.params.get("length", 1) * sum(map(_flops, inner))

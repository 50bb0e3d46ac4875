"""Runs layers one after the other: rematerialised, gathered one at a time, compiled as a loop."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from hydrahead_jax.sharding import Layout

Remat = Literal["none", "kernels", "full"]

_KEPT_BY_KERNELS = (
    "attention_out",
    "attention_lse",
    "gated_delta_out",
    "gated_delta_states",
    "gated_delta_inverses",
    "slot_attention_out",
    "slot_attention_slots",
    "slot_attention_states",
)


def _all_but_gathered(primitive, *_, **parameters) -> bool:
    """Says whether to save a value for the backward: anything but gathered parameters.

    Saved gathered parameters would hold the unsharded parameters of all layers at once.
    """
    function = parameters.get("call_jaxpr")  # of a custom derivative, such as `Layout.gather`
    names = [eqn.primitive.name for eqn in function.eqns] if function else [primitive.name]
    return names != ["sharding_constraint"]


_POLICIES = {
    "none": _all_but_gathered,
    "kernels": jax.checkpoint_policies.save_only_these_names(*_KEPT_BY_KERNELS),
    "full": jax.checkpoint_policies.nothing_saveable,
}


def run_modules(
    call: Callable,
    modules: Sequence[nnx.Module],
    carry: Any,
    inputs: Sequence[Any],
    shared: Any,
    *,
    layout: Layout | None,
    remat: Remat,
    scan: bool,
) -> tuple[Any, list]:
    """Runs `carry, result = call(module, carry, input, shared)` for each module.

    Args:
      call: a function of pytrees of arrays.
      modules: modules with parameters only.
      carry: carry of the first module.
      inputs: one for each module.
      shared: what all modules read.
      layout: where parameters lie; those of a module are gathered along the embedding for its call.
      remat: what is saved of a call for the backward pass. "none": all but gathered parameters;
        "kernels": only what kernels save; "full": only its arguments.
      scan: run modules of equal structure that follow one another as a loop, which compiles once;
        their parameters are stacked for it.

    Returns:
      The last carry, and the result of each module.
    """
    results = []
    if layout is None and remat == "none" and not scan:
        for index, (module, value) in enumerate(zip(modules, inputs, strict=True)):
            with jax.named_scope(f"layer_{index}"):
                carry, result = call(module, carry, value, shared)
            results.append(result)
        return carry, results
    run = functools.partial(_run, call, layout, remat)
    made = [nnx.split(module, nnx.Param) for module in modules]
    make = lambda index: (made[index][0], _shapes(made[index][1]))
    for (graphdef, _), group in itertools.groupby(range(len(modules)), key=make):
        group = list(group)
        params = [nnx.to_pure_dict(made[index][1]) for index in group]
        values = [inputs[index] for index in group]
        if scan and len(group) > 1:
            carry, stacked = _scan(run, graphdef, layout, params, carry, values, shared)
            results += [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(len(group))]
            continue
        for own, value in zip(params, values, strict=True):
            carry, result = run(graphdef, own, carry, value, shared)
            results.append(result)
    return carry, results


def _scan(run, graphdef, layout: Layout | None, params: list, carry, values: list, shared):
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    if layout is not None:
        stacked = layout.constrain_stacked(stacked)
    values = jax.tree.map(lambda *leaves: jnp.stack(leaves), *values)

    def body(carry, own):
        return run(graphdef, own[0], carry, own[1], shared)

    return jax.lax.scan(body, carry, (stacked, values))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _run(call, layout: Layout | None, remat: Remat, graphdef, params: dict, *arguments):
    def gathered_call(params, *arguments):
        if layout is not None:
            params = layout.gather(params)
        return call(nnx.merge(graphdef, params), *arguments)

    if remat == "none" and layout is None:
        return gathered_call(params, *arguments)
    return jax.checkpoint(gathered_call, policy=_POLICIES[remat])(params, *arguments)


def _shapes(params) -> tuple:
    return tuple((x.shape, x.dtype) for x in jax.tree.leaves(params))

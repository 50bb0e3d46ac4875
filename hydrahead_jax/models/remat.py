"""Modules run with their parameters gathered from a mesh, and with less kept for the backward."""

import functools
from typing import Literal

import jax
from flax import nnx

from hydrahead_jax.sharding import Layout

Remat = Literal["none", "kernels", "full"]

_KEPT_BY_KERNELS = (
    "attention_out",
    "attention_lse",
    "gated_delta_out",
    "gated_delta_states",
    "gated_delta_inverses",
)
_POLICIES = {
    "kernels": jax.checkpoint_policies.save_only_these_names(*_KEPT_BY_KERNELS),
    "full": jax.checkpoint_policies.nothing_saveable,
}


def run_module(module: nnx.Module, *args, layout: Layout | None, remat: Remat):
    """`module(*args)`.

    Args:
      module: with parameters only; modules of equal make are traced once.
      args: pytrees of arrays.
      layout: the parameters are made whole along the embedding for the time of the call.
      remat: what the backward finds of the forward: "none", everything; "kernels", what the
        kernels keep; "full", the arguments alone.
    """
    if layout is None and remat == "none":
        return module(*args)
    graphdef, params = nnx.split(module, nnx.Param)
    return _run(graphdef, layout, remat, nnx.to_pure_dict(params), args)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run(graphdef, layout: Layout | None, remat: Remat, params: dict, args: tuple):
    def call(params, args):
        if layout is not None:
            params = layout.gather(params)
        return nnx.merge(graphdef, params)(*args)

    if remat == "none":
        return call(params, args)
    return jax.checkpoint(call, policy=_POLICIES[remat])(params, args)

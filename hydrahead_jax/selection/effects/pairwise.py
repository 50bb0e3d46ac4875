"""Compiles functions of parameters and pairs once, on one device or with pairs on a mesh."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "data"


def over_pairs(function: Callable, mesh: Mesh | None = None, **static) -> Callable:
    """Compiles `function(params, *pairs, **static)`.

    Every array in `pairs` and in the result leads with the pair; scalars belong to all. On a mesh
    each device takes its share of the pairs, and `params`, one layer's, are gathered on every
    device for the time of the call.
    """
    return _compiled(function, mesh, tuple(sorted(static.items())))


@functools.cache
def _compiled(function: Callable, mesh: Mesh | None, static: tuple) -> Callable:
    bound = functools.partial(function, **dict(static))
    if mesh is None:
        return jax.jit(bound)

    def call(params, *pairs):
        specs = jax.tree.map(_pair_spec, pairs)
        mapped = jax.shard_map(
            bound, mesh=mesh, in_specs=(PartitionSpec(), *specs), out_specs=PartitionSpec(AXIS)
        )
        return mapped(params, *pairs)

    return jax.jit(call)


def place_pairs(tree, mesh: Mesh | None):
    """Places arrays that lead with the pair on the devices of the mesh."""
    if mesh is None:
        return jax.tree.map(jnp.asarray, tree)
    place = lambda x: jax.device_put(x, NamedSharding(mesh, _pair_spec(x)))
    return jax.tree.map(place, tree)


def place_params(params: dict, mesh: Mesh | None) -> dict:
    """Splits each parameter over the mesh along its longest axis that divides.

    A parameter without such an axis is replicated.
    """
    if mesh is None:
        return jax.tree.map(jnp.asarray, params)
    place = lambda x: jax.device_put(x, NamedSharding(mesh, _param_spec(x.shape, mesh.size)))
    return jax.tree.map(place, params)


def data_mesh(devices: int) -> Mesh:
    """Makes a mesh of the first `devices` devices for `select`."""
    return Mesh(np.array(jax.devices()[:devices]), (AXIS,))


def _pair_spec(x) -> PartitionSpec:
    return PartitionSpec(AXIS) if np.ndim(x) else PartitionSpec()


def _param_spec(shape: tuple[int, ...], size: int) -> PartitionSpec:
    axes = [axis for axis, length in enumerate(shape) if length % size == 0]
    if not axes:
        return PartitionSpec()
    longest = max(axes, key=lambda axis: shape[axis])
    return PartitionSpec(*[None] * longest, AXIS)

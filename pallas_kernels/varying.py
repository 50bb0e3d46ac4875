"""Tells `jax.shard_map` over which mesh axes a kernel's arguments and results vary."""

import jax


def vary_alike(*trees) -> tuple:
    """Makes the trees of arrays vary over all mesh axes that any array varies over."""
    arrays, structure = jax.tree.flatten(trees)
    axes = _axes(arrays)
    missing = [tuple(axes - jax.typeof(x).manual_axis_type.varying) for x in arrays]
    varying = [
        jax.lax.pcast(x, names, to="varying") if names else x
        for x, names in zip(arrays, missing, strict=True)
    ]
    return jax.tree.unflatten(structure, varying)


def array_type(shape, dtype, *, like) -> jax.ShapeDtypeStruct:
    """Returns the type of a result that varies over the mesh axes of the arguments it is `like`."""
    varying = jax.sharding.ManualAxisType(varying=_axes(like))
    return jax.ShapeDtypeStruct(tuple(shape), dtype, manual_axis_type=varying)


def _axes(arrays) -> frozenset:
    return frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in arrays))

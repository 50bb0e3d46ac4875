"""What `jax.shard_map` has to know of a kernel's arguments and results."""

import jax


def vary_alike(*arrays) -> tuple:
    """The arrays, all said to vary over the mesh axes that any of them varies over."""
    axes = _axes(arrays)
    missing = [tuple(axes - jax.typeof(x).manual_axis_type.varying) for x in arrays]
    return tuple(
        jax.lax.pcast(x, names, to="varying") if names else x
        for x, names in zip(arrays, missing, strict=True)
    )


def array_type(shape, dtype, *, like) -> jax.ShapeDtypeStruct:
    """A result that varies over the mesh axes of the arguments it is `like`."""
    varying = jax.sharding.ManualAxisType(varying=_axes(like))
    return jax.ShapeDtypeStruct(tuple(shape), dtype, manual_axis_type=varying)


def _axes(arrays) -> frozenset:
    return frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in arrays))

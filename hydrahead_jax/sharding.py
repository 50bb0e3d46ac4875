"""Says where arrays lie on a mesh, by one table from dimension letter to mesh axis."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from hydrahead_jax.context.order import Order
from hydrahead_jax.errors import UserError

AXES = ("data", "fsdp", "context", "tensor")

_ROWS = ("data", "fsdp")
_HEADS = {letter: "tensor" for letter in "NKFV"}
_ACTIVATIONS = {"B": _ROWS, "T": "context", "S": "context", **_HEADS}
_PARAMS = {"D": "fsdp", **_HEADS}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Says how many devices are along each axis; -1 on one axis takes all that are left.

    Attributes:
      data: copies of the parameters, each with its share of the rows.
      fsdp: shares of every parameter along the embedding, and of the rows.
      context: shares of every row's tokens.
      tensor: shares of the heads, of the MLP and of the vocabulary.
      order: how the tokens of a row lie over the ranks of `context`. "zigzag" gives each rank a
        chunk from either half of the row, so that causal attention costs all ranks the same.
    """

    data: int = 1
    fsdp: int = 1
    context: int = 1
    tensor: int = 1
    order: Order = "zigzag"

    def __post_init__(self):
        sizes = [getattr(self, axis) for axis in AXES]
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            raise ValueError(
                f"mesh {self.text()}: each axis must be a positive size; at most one may be -1, "
                'meaning "all remaining devices"'
            )

    def text(self) -> str:
        return " x ".join(f"{axis}={getattr(self, axis)}" for axis in AXES)

    def sizes(self, devices: int) -> dict[str, int]:
        """Returns the size of each axis on that many devices.

        Raises:
          UserError: the mesh does not fit them.
        """
        sizes = {axis: getattr(self, axis) for axis in AXES}
        product = math.prod(size for size in sizes.values() if size != -1)
        open_axis = next((axis for axis, size in sizes.items() if size == -1), None)
        if product > devices or (open_axis and devices % product):
            raise UserError(
                f"mesh {self.text()} does not fit {devices} devices; "
                + _advice(sizes, open_axis or max(sizes, key=sizes.get), devices)
            )
        return sizes | ({open_axis: devices // product} if open_axis else {})


@dataclasses.dataclass(frozen=True)
class Layout:
    """Says how arrays lie on a mesh, with the order of tokens on it; static under jit.

    Parameters and activations are partitioned by XLA, which is told the layout in a few places;
    kernels, attention over a mesh axis and the vocabulary losses run under `jax.shard_map`.
    """

    mesh: Mesh
    order: Order

    def size(self, *axes: str) -> int:
        """Counts the devices along the axes together."""
        return math.prod(self.mesh.shape[axis] for axis in axes)

    def spec(self, dims: str) -> PartitionSpec:
        """Returns the partition of an activation, such as spec("BTNH")."""
        return PartitionSpec(*[_ACTIVATIONS.get(letter) for letter in dims])

    def sharding(self, dims: str) -> NamedSharding:
        """Returns the sharding of an activation; sharding("") replicates it on every device."""
        return NamedSharding(self.mesh, self.spec(dims))

    def constrain(self, x: jax.Array, dims: str) -> jax.Array:
        """Tells XLA where an activation lies."""
        return jax.lax.with_sharding_constraint(x, self.sharding(dims))

    def param_spec(self, path: str, shape: Sequence[int], *, gathered: bool = False):
        """Returns the partition of a parameter, by the letters that its name ends in.

        Vectors are replicated, and so is a dimension that its axis does not divide.
        `gathered` is the layout that a layer computes with: not sharded along the embedding.
        """
        letters = path.rpartition("/")[2].rpartition("_")[2]
        if len(shape) < 2 or len(letters) != len(shape):
            return PartitionSpec()
        axes = [_PARAMS.get(letter) for letter in letters]
        if gathered:
            axes = [None if axis == "fsdp" else axis for axis in axes]
        divides = lambda axis, size: axis is not None and size % self.size(axis) == 0
        return PartitionSpec(
            *[a if divides(a, size) else None for a, size in zip(axes, shape, strict=True)]
        )

    def shardings(self, tree):
        """Returns the shardings of parameters.

        The tree may be anything with the paths of parameters, such as optimizer states.
        """

        def sharding(path, leaf):
            keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
            name = str(keys[-1]) if keys else ""
            return NamedSharding(self.mesh, self.param_spec(name, leaf.shape))

        return jax.tree_util.tree_map_with_path(sharding, tree)

    def gather(self, params):
        """Gathers a layer's parameters along the embedding for the time of the computation.

        Their gradients are summed and sharded again at once.
        """

        def whole(path, leaf):
            name = str(path[-1].key)
            shared, gathered = (
                NamedSharding(self.mesh, self.param_spec(name, leaf.shape, gathered=is_gathered))
                for is_gathered in (False, True)
            )
            return _moved(shared, gathered, leaf)

        return jax.tree_util.tree_map_with_path(whole, params)

    def constrain_stacked(self, params):
        """Shards parameters of several layers, stacked in one array each, like one layer's."""

        def shared(path, leaf):
            spec = self.param_spec(str(path[-1].key), leaf.shape[1:])
            sharding = NamedSharding(self.mesh, PartitionSpec(None, *spec))
            return jax.lax.with_sharding_constraint(leaf, sharding)

        return jax.tree_util.tree_map_with_path(shared, params)

    def local_rows(self, batch: int) -> tuple[int, ...]:
        """Returns the rows of a batch that this process supplies; several may supply the same."""
        parts = NamedSharding(self.mesh, PartitionSpec(_ROWS)).addressable_devices_indices_map(
            (batch,)
        )
        return tuple(sorted({row for (rows,) in parts.values() for row in range(batch)[rows]}))

    def place_batch(self, rows, batch: int):
        """Makes arrays [len(local_rows(batch)), T] of each process global arrays [batch, T]."""
        place = {row: index for index, row in enumerate(self.local_rows(batch))}

        def place_array(x: np.ndarray) -> jax.Array:
            def part(index):
                wanted = [place[row] for row in range(batch)[index[0]]]
                return x[wanted, index[1]]

            shape = (batch, *x.shape[1:])
            return jax.make_array_from_callback(shape, self.sharding("BT"), part)

        return jax.tree.map(place_array, rows)


def make_layout(config: MeshConfig, devices: Sequence | None = None) -> Layout | None:
    """Makes the mesh on `devices`, by default all of them.

    Returns None where the mesh is JAX's default device alone.

    Raises:
      UserError: the mesh does not fit the devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = config.sizes(len(devices))
    used = math.prod(sizes.values())
    if used < len(devices) and len({device.process_index for device in devices}) > 1:
        raise UserError(
            f"mesh {config.text()} uses {used} of {len(devices)} devices; with several processes "
            f"it must use all of them, so set one axis to -1"
        )
    if used == 1 and devices[0] == jax.devices()[0]:
        return None
    grid = mesh_utils.create_device_mesh(
        tuple(sizes.values()), devices[:used], allow_split_physical_axes=True
    )
    return Layout(Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES)), config.order)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _moved(source: NamedSharding, target: NamedSharding, x: jax.Array):
    return jax.lax.with_sharding_constraint(x, target)


_moved.defvjp(
    lambda source, target, x: (_moved(source, target, x), None),
    lambda source, target, _, dx: (jax.lax.with_sharding_constraint(dx, source),),
)


def nearest_divisors(size: int, wanted: int) -> list[int]:
    """Returns the divisors of `size` just below and just above `wanted`."""
    divisors = [n for n in range(1, size + 1) if size % n == 0]
    below = [n for n in divisors if n <= wanted][-1:]
    return below + [n for n in divisors if n > wanted][:1]


def _advice(sizes: dict[str, int], axis: str, devices: int) -> str:
    others = math.prod(size for name, size in sizes.items() if size != -1 and name != axis)
    if others > devices:
        return f"the axes beside {axis} need {others} devices already; make them smaller"
    if devices % others:
        return (
            f"the axes beside {axis} need {others} devices, not a divisor of {devices}; change one"
        )
    return f"set {axis}={devices // others}, which uses all of them with the other axes unchanged"

"""Says which device a traced program is for."""

from typing import NamedTuple

import jax


class Target(NamedTuple):
    """Says which device a traced program is for.

    Attributes:
      platform: "tpu", "gpu" or "cpu".
      device_kind: as JAX names it, "TPU v6 lite" or "NVIDIA H200".
    """

    platform: str
    device_kind: str


def target(*arrays) -> Target:
    """Returns the device of `arrays`' sharding, else that of the mesh in use, else the default.

    The first two also know devices that are only compiled for, not at hand.
    """
    meshes = [jax.typeof(x).sharding.mesh for x in arrays] + [jax.sharding.get_abstract_mesh()]
    for mesh in meshes:
        device = getattr(mesh, "abstract_device", None)
        if device is not None:
            return Target(_platform(device.platform), device.device_kind)
    device = jax.local_devices()[0]
    return Target(_platform(device.platform), device.device_kind)


def _platform(name: str) -> str:
    return "gpu" if name.lower() in ("cuda", "rocm", "gpu") else name.lower()

"""Checks where the Hopper kernels run."""

import re

import jax

from pallas_kernels.target import target

OLDEST_JAX = (0, 11)
_HOPPER = re.compile(r"\bG?H(20|100|200|800)\b")


def check_machine(array, interpret) -> None:
    """Refuses machines and versions of jax that the Hopper kernels cannot be run on."""
    if jax.__version_info__ < OLDEST_JAX:
        raise NotImplementedError(
            f"jax is {jax.__version__}; the Hopper kernels need jax 0.11 or newer (Python 3.12)"
        )
    device = target(array)
    if not interpret and not (device.platform == "gpu" and _HOPPER.search(device.device_kind)):
        raise NotImplementedError(
            f"the device is {device.device_kind}; the kernels run on Hopper GPUs (H100, H200), "
            "or anywhere with interpret=True"
        )


def interpreter(interpret):
    if interpret is not True:
        return interpret
    import jax.experimental.pallas.mosaic_gpu as plgpu

    return plgpu.InterpretGPUParams()

"""Says what the TPU kernels must know of a generation, by `device_kind` as JAX names it."""

from pallas_kernels.target import target

TWO_CORES = ("TPU v4", "TPU v5")
"""One device with two cores, which share a grid along its parallel dimensions."""

NARROW_UNITS = (*TWO_CORES, "TPU v5 lite")
"""Matrix units 128 wide; later ones are 256 wide."""


def check_device(array, interpret) -> None:
    """Refuses devices that the TPU kernels cannot be run on."""
    device = target(array)
    if not interpret and device.platform != "tpu":
        raise NotImplementedError(
            f"the device is {device.device_kind}; the kernels run on TPU, or anywhere with "
            "interpret=True"
        )


def check_dtypes(q, k, v) -> None:
    """Refuses dtypes that the TPU kernels do not take."""
    dtypes = {str(x.dtype) for x in (q, k, v)}
    if dtypes not in ({"bfloat16"}, {"float32"}):
        raise NotImplementedError(
            f"q, k and v are {', '.join(sorted(dtypes))}; all bfloat16 or all float32 are accepted"
        )

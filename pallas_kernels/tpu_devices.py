"""What the TPU kernels have to know of a generation, by `device_kind` as JAX names it."""

TWO_CORES = ("TPU v4", "TPU v5")
"""One device with two cores, which share a grid along its parallel dimensions."""

NARROW_UNITS = (*TWO_CORES, "TPU v5 lite")
"""Matrix units 128 wide; later ones are 256 wide."""

"""What each chip can do at most."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """Attributes:
    flops: bf16 matrix FLOP a second, all cores.
    bandwidth: bytes a second of device memory, all cores.
    cores: TensorCores or multiprocessors.
    flops_per_cycle: bf16 matrix FLOP of one core in a cycle.
    device_kinds: how JAX names it.
    compiled_cores: cores that one JAX device has, and that a compiled program can use.
    """

    flops: float
    bandwidth: float
    cores: int
    flops_per_cycle: int
    device_kinds: tuple[str, ...]
    compiled_cores: int = 1

    @property
    def clock(self) -> float:
        """Cycles a second at which the peak is reached."""
        return self.flops / (self.cores * self.flops_per_cycle)

    def compute_s(self, flops: float) -> float:
        """Least time for the matrix products, on the cores that a program is compiled for."""
        return flops * self.cores / (self.flops * self.compiled_cores)

    def memory_s(self, size: float) -> float:
        """Least time to move `size` bytes, with those cores' part of the bandwidth."""
        return size * self.cores / (self.bandwidth * self.compiled_cores)

    def floor_s(self, flops: float, size: float) -> float:
        return max(self.compute_s(flops), self.memory_s(size))


# TPU peaks, bandwidths and cores: docs.cloud.google.com/tpu/docs/v5e and /tpu7x (whose table has
# v5p, v6e and TPU7x). FLOP a cycle: v5e and v5p have four 128 x 128 matrix units (the same pages);
# v6e and TPU7x two of 256 x 256 that take two bf16 rows a cycle, as the schedule of a plain matmul
# shows (tests/kernels/test_hardware_free_tpu.py). H200: NVIDIA's data sheet (dense bf16, 4.8 TB/s)
# and, for 4,096 FLOP a cycle in each of 132 multiprocessors, the H100 architecture white paper.
CHIPS = {
    "v5e": Chip(
        flops=197e12,
        bandwidth=819e9,
        cores=1,
        flops_per_cycle=2 * 4 * 128**2,
        device_kinds=("TPU v5 lite", "TPU v5e"),
    ),
    "v5p": Chip(
        flops=459e12,
        bandwidth=2765e9,
        cores=2,
        flops_per_cycle=2 * 4 * 128**2,
        device_kinds=("TPU v5", "TPU v5p"),
        compiled_cores=2,
    ),
    "v6e": Chip(
        flops=918e12,
        bandwidth=1638e9,
        cores=1,
        flops_per_cycle=2 * 2 * 2 * 256**2,
        device_kinds=("TPU v6 lite", "TPU v6e"),
    ),
    "tpu7x": Chip(
        flops=2307e12,
        bandwidth=7380e9,
        cores=2,
        flops_per_cycle=2 * 2 * 2 * 256**2,
        device_kinds=("TPU7x",),
    ),
    "h200": Chip(
        flops=989.4e12,
        bandwidth=4.8e12,
        cores=132,
        flops_per_cycle=4096,
        device_kinds=("NVIDIA H200",),
        compiled_cores=132,
    ),
}


def chip_of(device_kind: str) -> str | None:
    """The key in CHIPS of a device by JAX's name; None for any other device."""
    return next((name for name, chip in CHIPS.items() if device_kind in chip.device_kinds), None)

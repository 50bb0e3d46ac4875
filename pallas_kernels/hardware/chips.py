"""Says what each chip can do at most."""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """Says what one chip can do at most.

    Attributes:
      flops: bf16 matrix FLOP per second, all cores.
      bandwidth: bytes per second of device memory, all cores.
      cores: TensorCores or multiprocessors.
      flops_per_cycle: bf16 matrix FLOP of one core in a cycle.
      device_kinds: the names that JAX gives it.
      compiled_cores: cores that one JAX device has, and that a compiled program can use.
      memory: bytes that a program can use on one JAX device.
      links: bytes per second that all links of a chip to others carry together in one direction.
    """

    flops: float
    bandwidth: float
    cores: int
    flops_per_cycle: int
    device_kinds: tuple[str, ...]
    memory: float
    links: float
    compiled_cores: int = 1

    @property
    def clock(self) -> float:
        """Returns the cycles per second at which the peak is reached."""
        return self.flops / (self.cores * self.flops_per_cycle)

    def compute_s(self, flops: float) -> float:
        """Returns the least time for matrix products, on the cores that a program can use."""
        return flops * self.cores / (self.flops * self.compiled_cores)

    def memory_s(self, size: float) -> float:
        """Returns the least time to move `size` bytes, with those cores' part of the bandwidth."""
        return size * self.cores / (self.bandwidth * self.compiled_cores)

    def network_s(self, size: float) -> float:
        """Returns the least time for one JAX device to send `size` bytes.

        All links of its chip are taken to be busy, whatever way the bytes have to go: a collective
        along one axis of a torus has only the links of that axis, and what crosses several chips
        takes a link of each.
        """
        return size * self.cores / (self.links * self.compiled_cores)

    def floor_s(self, flops: float, size: float) -> float:
        return max(self.compute_s(flops), self.memory_s(size))


# TPU peaks, bandwidths and cores: docs.cloud.google.com/tpu/docs/v4, /v5e and /tpu7x (whose table
# has v5p, v6e and TPU7x). FLOP a cycle: v4, v5e and v5p have four 128 x 128 matrix units (the same
# pages); v6e and TPU7x two of 256 x 256 that take two bf16 rows a cycle, as the schedule of a plain
# matmul shows (tests/pallas_kernels/hardware/test_tpu.py). H200: NVIDIA's data sheet (dense bf16,
# 4.8 TB/s) and, for 4,096 FLOP a cycle in each of 132 multiprocessors, the H100 architecture white
# paper.
#
# Memory of TPUs: what libtpu's compiler says is available when a program is too large; it is below
# the 32, 16, 95, 32 and 2 x 96 GB of the pages above. H200: 139 GiB are there, and JAX takes 95 %
# of them with XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 (75 % without).
#
# Links in one direction: v5e 4 x 50 GB/s and v6e 4 x 100 (docs/v6e: 1,600 and 3,200 Gbps a chip),
# v5p and TPU7x 6 x 100 (docs/tpu7x: 1,200 GB/s both ways), v4 6 x 45 (docs/v4: 1.1 PB/s of
# all-reduce for 4,096 chips). H200: NVLink, 900 GB/s both ways, within a node only.
CHIPS = {
    "v4": Chip(
        flops=275e12,
        bandwidth=1200e9,
        cores=2,
        flops_per_cycle=2 * 4 * 128**2,
        device_kinds=("TPU v4",),
        memory=30.75 * GIB,
        links=6 * 45e9,
        compiled_cores=2,
    ),
    "v5e": Chip(
        flops=197e12,
        bandwidth=819e9,
        cores=1,
        flops_per_cycle=2 * 4 * 128**2,
        device_kinds=("TPU v5 lite", "TPU v5e"),
        memory=15.75 * GIB,
        links=4 * 50e9,
    ),
    "v5p": Chip(
        flops=459e12,
        bandwidth=2765e9,
        cores=2,
        flops_per_cycle=2 * 4 * 128**2,
        device_kinds=("TPU v5", "TPU v5p"),
        memory=95.73 * GIB,
        links=6 * 100e9,
        compiled_cores=2,
    ),
    "v6e": Chip(
        flops=918e12,
        bandwidth=1638e9,
        cores=1,
        flops_per_cycle=2 * 2 * 2 * 256**2,
        device_kinds=("TPU v6 lite", "TPU v6e"),
        memory=31.24 * GIB,
        links=4 * 100e9,
    ),
    "tpu7x": Chip(
        flops=2307e12,
        bandwidth=7380e9,
        cores=2,
        flops_per_cycle=2 * 2 * 2 * 256**2,
        device_kinds=("TPU7x",),
        memory=94.74 * GIB,
        links=6 * 100e9,
    ),
    "h200": Chip(
        flops=989.4e12,
        bandwidth=4.8e12,
        cores=132,
        flops_per_cycle=4096,
        device_kinds=("NVIDIA H200",),
        memory=0.95 * 139 * GIB,
        links=450e9,
        compiled_cores=132,
    ),
}


def chip_of(device_kind: str) -> str | None:
    """Returns the key in CHIPS of a device by JAX's name; None for any other device."""
    return next((name for name, chip in CHIPS.items() if device_kind in chip.device_kinds), None)

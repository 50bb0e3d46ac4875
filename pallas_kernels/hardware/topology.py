"""Makes devices that are only compiled for: slices of TPUs, and a node of H200s."""

import importlib.util
import os
import re
from collections.abc import Sequence
from pathlib import Path

import jax

TPU_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Says what libtpu needs on a machine without a TPU, before jax is imported."""

# An H200 as XLA describes it: NVIDIA's data sheet and the limits of compute capability 9.0.
_H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 150000000000 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 } device_description_str: "NVIDIA H200"
"""


def tpu_devices(topology: str) -> Sequence:
    """Returns the devices of a slice such as "v5p:4x4x4".

    A device is a chip, or with TPU7x one of its two cores.

    Raises:
      ValueError: libtpu knows no such slice; the message is its own.
    """
    from jax.experimental import topologies

    # A v4 chip is two devices unless its cores are used as one, as they are on Cloud TPU.
    options = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=topology, **options
        ).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(re.sub(r"^[A-Z_]+: ", "", str(error))) from error


def h200_devices(count: int = 1) -> Sequence:
    """Returns H200s of one node; `cuda_environment` must have been set before jax was imported."""
    from jax.experimental import topologies

    os.environ["MOSAIC_GPU_CUDA_ROOT"] = cuda_root()  # jax sets another when it is imported
    return topologies.get_topology_desc(
        "", "cuda", target_config=_H200, topology=f"1x1x{count}"
    ).devices


def cuda_environment() -> dict[str, str]:
    """Returns the environment that the GPU compiler needs before jax is imported."""
    flags = f"--xla_gpu_cuda_data_dir={cuda_root()} --xla_gpu_autotune_level=0"
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def cuda_root() -> str:
    """Returns the folder of NVIDIA's compiler package."""
    return str(Path(next(iter(importlib.util.find_spec("nvidia.cu13").submodule_search_locations))))

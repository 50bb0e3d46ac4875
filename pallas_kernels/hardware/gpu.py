"""Compiles any jax function for an H200 without a GPU, and reads what its kernels cost."""

import dataclasses
import importlib.util
from pathlib import Path

import jax
import numpy as np

from pallas_kernels.hardware.isolated import dump_folder, run_isolated
from pallas_kernels.hardware.memory import Memory, memory_of
from pallas_kernels.hardware.sass import GpuKernel, read_kernels
from pallas_kernels.hardware.topology import cuda_environment, cuda_root, h200_devices

PACKAGES = ("jax_cuda13_plugin", "jax_plugins.xla_cuda13", "nvidia.cu13")
PROGRAMS = ("ptxas", "nvdisasm")
INSTALL = "pip install 'hydrahead_jax[hardware-free]' (Python 3.12 or newer)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GpuProgram:
    """Shows a function as compiled for an H200.

    Attributes:
      kernels: its Mosaic GPU kernels, in order of name; XLA's own are not among them.
      memory: device memory of the complete program.
    """

    kernels: tuple[GpuKernel, ...]
    memory: Memory


def compile_for_h200(fn, *shapes, dump: str | None = None) -> GpuProgram:
    """Compiles `jit(fn)` for one H200 in a new process; no GPU and no driver needed.

    Args:
      fn: a function importable by name, or a functools.partial of one.
      shapes: its arguments as jax.ShapeDtypeStruct, or pytrees of them.
      dump: a new folder for PTX, SASS and the compilers' reports.

    Raises:
      NotImplementedError: a package is missing, or `fn` refuses its arguments.
      IsolatedError: the compiler failed; the message ends with its words.
    """
    if missing := missing_tools():
        raise NotImplementedError(f"compiling for H200 needs {', '.join(missing)}: {INSTALL}")
    with dump_folder(dump) as folder:
        memory = run_isolated(_compile, fn, shapes, environment=_environment(folder))
        return GpuProgram(kernels=read_kernels(folder), memory=memory)


def missing_tools() -> list[str]:
    """Returns the packages and programs that the compiler for H200 lacks here."""
    missing = [name for name in PACKAGES if not _installed(name)]
    if "nvidia.cu13" in missing:
        return missing
    return missing + [name for name in PROGRAMS if not Path(cuda_root(), "bin", name).exists()]


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _environment(folder: str) -> dict[str, str]:
    return {
        **cuda_environment(),
        "MOSAIC_GPU_DUMP_TO": folder,
        "MOSAIC_GPU_DUMP_PTX": "1",
        "MOSAIC_GPU_DUMP_PTXAS": "1",
        "MOSAIC_GPU_DUMP_RESOURCES": "1",
        "MOSAIC_GPU_DUMP_SASS": "1",
    }


def _compile(fn, shapes) -> Memory:
    jax.config.update("jax_enable_compilation_cache", False)
    mesh = jax.sharding.Mesh(np.array(h200_devices()), ("chip",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    placed = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes
    )
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        compiled = jax.jit(fn).lower(*placed).compile()
    return memory_of(compiled)

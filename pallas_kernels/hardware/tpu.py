"""Compiles any jax function for a TPU without one, and reads what its schedule costs."""

import dataclasses
import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from pallas_kernels.hardware import hlo
from pallas_kernels.hardware.bundles import (
    Known,
    Listing,
    copied_bytes,
    frequencies,
    read_listing,
    top_level_frequencies,
)
from pallas_kernels.hardware.isolated import dump_folder, run_isolated
from pallas_kernels.hardware.memory import Memory, memory_of
from pallas_kernels.hardware.topology import TPU_ENVIRONMENT, tpu_devices

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
LOOPS = "while"  # the key in `known` of the program's own loops
TOP_LEVEL = "TLP"  # the compiler's name for the program that calls the kernels
_INSTRUCTIONS = "packed-bundles-post-ra"
_UTILIZATION = "pre-delay_hlo-static-per-bundle-utilization"
_DUMP = re.compile(r"\d+-([^<].*)-\d+-packed-bundles-post-ra\.txt$")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuKernel:
    """Says what one Pallas kernel, fusion or copy costs in the complete program.

    Attributes:
      executions: how often the program calls it.
      cycles: cycles of all calls together.
      slots: for each unit, slots held in all calls. MATMUL is how long the matrix units are
        occupied, which is not how much of them is used: half-filled tiles hold them as long as full
        ones.
      grid_steps: trips of its longest outer loop, 2 more than a Pallas grid has; 1 without a loop.
      step_cycles: cycles of one such trip.
      vmem_bytes: its on-chip memory.
      uncounted_loops: loops without a constant trip count, taken as running once.
      dma_bytes: upper bound of the bytes that all calls copy from and to HBM: a block that a grid
        copies only when it changes counts in every step. None where a copy's size is not known.
    """

    name: str
    executions: int
    cycles: float
    slots: Mapping[str, float]
    grid_steps: int
    step_cycles: float
    vmem_bytes: int
    uncounted_loops: int
    dma_bytes: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuProgram:
    """Shows a function as scheduled for one TPU core.

    Attributes:
      device_kind: as JAX names it.
      capacity: slots of each unit in a cycle.
      kernels: everything that runs, XLA's fusions and copies and the calling program included, by
        falling cycles.
      memory: device memory of the complete program.
    """

    device_kind: str
    capacity: Mapping[str, int]
    kernels: tuple[TpuKernel, ...]
    memory: Memory

    @property
    def cycles(self) -> float:
        return sum(kernel.cycles for kernel in self.kernels)

    @property
    def vmem_bytes(self) -> int:
        return max(kernel.vmem_bytes for kernel in self.kernels)

    @property
    def dma_bytes(self) -> float | None:
        return _dma_bytes(self.kernels)

    def slots(self, unit: str) -> float:
        return sum(kernel.slots[unit] for kernel in self.kernels)

    def share(self, unit: str) -> float:
        """Returns slots held as a share of all slots there are in the program's cycles."""
        return self.slots(unit) / (self.capacity[unit] * self.cycles)


def compile_for_tpu(
    fn,
    *shapes,
    chip: str = "v6e",
    known: Mapping[str, Known] | None = None,
    dump: str | None = None,
) -> TpuProgram:
    """Compiles `jit(fn)` for one core of a TPU in a new process; no TPU needed.

    Args:
      fn: a function importable by name, or a functools.partial of one.
      shapes: its arguments as jax.ShapeDtypeStruct, or pytrees of them.
      chip: a key of TOPOLOGIES.
      known: what is known of kernels, by the start of their names; the program's own loops
        are under LOOPS.
      dump: a new folder for the schedules and the compiled program's text.

    Raises:
      NotImplementedError: libtpu is missing, or `fn` refuses its arguments.
      IsolatedError: the compiler failed; the message ends with its words.
      ValueError: a kernel of `known` is not in the program, or not as `known` says.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise NotImplementedError(
            "compiling for TPU needs libtpu: pip install 'hydrahead_jax[hardware-free]'"
        )
    with dump_folder(dump) as folder:
        device_kind, text, memory = run_isolated(
            _compile, fn, shapes, TOPOLOGIES[chip], environment=_environment(folder)
        )
        Path(folder, "compiled_hlo.txt").write_text(text)
        listings = read_listings(folder)
    return TpuProgram(
        device_kind=device_kind,
        capacity=listings[0].capacity,
        kernels=_kernels(listings, text, known or {}),
        memory=memory,
    )


def fold_small(program: TpuProgram, *, share: float = 0.01) -> TpuProgram:
    """Returns the program with kernels below a share of its cycles added up to one, "others"."""
    large = [kernel for kernel in program.kernels if kernel.cycles >= share * program.cycles]
    small = program.kernels[len(large) :]
    if not small:
        return program
    others = TpuKernel(
        name="others",
        executions=sum(kernel.executions for kernel in small),
        cycles=sum(kernel.cycles for kernel in small),
        slots={unit: sum(x.slots[unit] for x in small) for unit in program.capacity},
        grid_steps=1,
        step_cycles=0.0,
        vmem_bytes=max(kernel.vmem_bytes for kernel in small),
        uncounted_loops=sum(kernel.uncounted_loops for kernel in small),
        dma_bytes=_dma_bytes(small),
    )
    return dataclasses.replace(program, kernels=(*large, others))


def _dma_bytes(kernels: Sequence[TpuKernel]) -> float | None:
    sizes = [kernel.dma_bytes for kernel in kernels]
    return None if None in sizes else sum(sizes)


def read_listings(folder: str) -> list[Listing]:
    """Reads every kernel dumped into `folder`."""
    listings = []
    for path in sorted(Path(folder).iterdir()):
        if (found := _DUMP.match(path.name)) and "schedule-analysis" not in path.name:
            stem = path.name[: found.end(1)]
            slots = next(x for x in Path(folder).iterdir() if _is_slots(x.name, stem))
            listings.append(read_listing(found[1], path.read_text(), slots.read_text()))
    return listings


def _is_slots(name: str, stem: str) -> bool:
    return re.fullmatch(re.escape(stem) + rf"-\d+-{_UTILIZATION}\.txt", name) is not None


def _kernels(listings, text: str, known: Mapping[str, Known]) -> tuple[TpuKernel, ...]:
    loops = known.get(LOOPS, Known()).trips
    executions, vmem = hlo.executions(text, loops), hlo.vmem_bytes(text)
    kernels, missing = [], set(known) - {LOOPS}
    for listing in listings:
        if listing.name == TOP_LEVEL:
            times, often = 1, top_level_frequencies(listing, executions)
        else:
            times = executions[listing.name]
            prefix = next(filter(listing.name.startswith, known), None)
            missing.discard(prefix)
            more = known.get(prefix, Known())
            listing = listing.with_trips(more.trips)
            often = frequencies(listing, more.shares)
        kernels.append(_kernel(listing, times, often, vmem.get(listing.name, 0)))
    if missing:
        raise ValueError(f"no kernel's name starts with {' or '.join(sorted(missing))}")
    return tuple(sorted(kernels, key=lambda kernel: -kernel.cycles))


def _kernel(listing: Listing, times: int, often: np.ndarray, vmem_bytes: int) -> TpuKernel:
    spans = [(often[x.first : x.last + 1].sum(), x.trips or 1) for x in listing.loops]
    loop_cycles, trips = max(spans, default=(often.sum(), 1))
    unknown = any(size is None for _, size in listing.copies)
    return TpuKernel(
        name=listing.name,
        executions=times,
        cycles=float(times * often.sum()),
        slots={unit: float(times * often @ held) for unit, held in listing.slots.items()},
        grid_steps=trips,
        step_cycles=float(loop_cycles / trips),
        vmem_bytes=vmem_bytes,
        uncounted_loops=sum(loop.trips is None for loop in listing.loops),
        dma_bytes=None if unknown else times * copied_bytes(listing, often),
    )


def _environment(folder: str) -> dict[str, str]:
    passes = f".*({_INSTRUCTIONS}|{_UTILIZATION}).*"
    flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
    return {
        **TPU_ENVIRONMENT,
        "LIBTPU_INIT_ARGS": f"{flags} --xla_jf_dump_llo_pass_label_regex={passes}",
    }


def _compile(fn, shapes, topology_name: str) -> tuple[str, str, Memory]:
    jax.config.update("jax_enable_compilation_cache", False)
    devices = tpu_devices(topology_name)
    mesh = jax.sharding.Mesh(np.array(devices[:1]), ("chip",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    placed = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes
    )
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        compiled = jax.jit(fn).lower(*placed).compile()
    return devices[0].device_kind, compiled.as_text(), memory_of(compiled)

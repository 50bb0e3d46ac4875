"""Names the machines that a plan can be for."""

import dataclasses
import importlib.util
import re
from collections.abc import Mapping, Sequence

from hydrahead_jax.errors import UserError
from pallas_kernels.hardware import gpu, topology
from pallas_kernels.hardware.chips import CHIPS, Chip

_TPU = re.compile(r"(v4|v5e|v5p|v6e|tpu7x):(\d+(?:x\d+)+)")
_NODE = re.compile(r"h200(?::(\d+))?")
_MOST_IN_A_NODE = 8
EXAMPLES = "v5e:16x16, v5p:8x8x8, v6e:4x4, tpu7x:4x4x4, v4:4x4x4, h200 or h200:8"


@dataclasses.dataclass(frozen=True)
class Target:
    """Describes a slice of TPUs, or H200s of one node; `name` is what the user wrote."""

    name: str

    @property
    def chip(self) -> Chip:
        return CHIPS[self.name.partition(":")[0]]

    def environment(self) -> Mapping[str, str]:
        """Returns the environment of the process that compiles."""
        if self.name.startswith("h200"):
            return topology.cuda_environment()
        return topology.TPU_ENVIRONMENT

    def devices(self) -> Sequence:
        """Returns the devices as JAX sees them; works only in a process with that environment.

        Raises:
          ValueError: the compiler knows no such slice.
        """
        if node := _NODE.fullmatch(self.name):
            return topology.h200_devices(int(node[1] or 1))
        return topology.tpu_devices(self.name)


def _tpu_compiler() -> bool:
    return importlib.util.find_spec("libtpu") is not None


def parse_target(text: str) -> Target:
    """Returns the target of that name.

    Raises:
      UserError: there is none, or its compiler is not installed.
    """
    if node := _NODE.fullmatch(text):
        if not 1 <= int(node[1] or 1) <= _MOST_IN_A_NODE:
            raise UserError(f"target {text!r}: a node must have 1 to {_MOST_IN_A_NODE} H200s")
        if missing := gpu.missing_tools():
            raise UserError(f"planning for H200 needs {', '.join(missing)}: {gpu.INSTALL}")
        return Target(text)
    if not _TPU.fullmatch(text):
        raise UserError(f"unknown target {text!r}; use one such as {EXAMPLES}")
    if not _tpu_compiler():
        raise UserError("planning for TPU needs libtpu: pip install 'hydrahead_jax[hardware-free]'")
    return Target(text)

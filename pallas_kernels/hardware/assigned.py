"""Reads what the compiler has decided before it generates code.

XLA's partitioning, scheduling and buffer assignment take seconds where code for every kernel and
fusion of a large program takes many minutes, and they settle its memory and its collectives.
"""

import re
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from pallas_kernels.hardware.memory import Memory

_PROGRAM = "after_optimizations.txt"
_BUFFERS = "after_optimizations-buffer-assignment.txt"
_ALLOCATION = re.compile(r"^allocation \d+: (?:0x\w+, )?size (\d+),(.*)$", re.MULTILINE)
_NOT_COUNTED = re.compile(r" color [1-9]| thread-local| constant")
_SECONDS_BETWEEN_LOOKS = 0.5


class Assigned(NamedTuple):
    """Carries the text of the scheduled program, as `hlo` reads it, and its device memory."""

    text: str
    memory: Memory


def compile_until_assigned(lowered) -> Assigned:
    """Returns the scheduled program, while its code is still being generated in a thread.

    To be called in a process that ends soon, such as that of `run_isolated`.

    Args:
      lowered: the result of `jax.jit(...).lower(...)`.

    Raises:
      jax.errors.JaxRuntimeError: `lowered.compile()` failed before that.
    """
    folder = Path(tempfile.mkdtemp(prefix="assigned_"))
    options = {"xla_dump_to": str(folder), "xla_dump_hlo_as_text": True}
    failures = []

    def run() -> None:
        try:
            lowered.compile(compiler_options=options)
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    sizes = [-1]
    while thread.is_alive() and (sizes[-1] <= 0 or sizes[-1] != sizes[-2]):
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        sizes.append(_size(folder))
    if failures:
        raise failures[0]
    (program,), (buffers,) = (list(folder.glob(f"*{name}")) for name in (_PROGRAM, _BUFFERS))
    assigned = Assigned(program.read_text(), read_buffers(buffers.read_text()))
    shutil.rmtree(folder, ignore_errors=True)
    return assigned


def read_buffers(text: str) -> Memory:
    """Reads the device's main memory from a dump of its assignment; like XLA, without constants."""
    sizes = {"arguments": 0, "results": 0, "temporaries": 0}
    for size, about in _ALLOCATION.findall(text):
        if _NOT_COUNTED.search(about):
            continue
        kind = "results" if "maybe-live-out" in about else "temporaries"
        sizes["arguments" if " parameter " in about else kind] += int(size)
    return Memory(**sizes)


def _size(folder: Path) -> int:
    """Returns the size of both files together; 0 while one does not exist."""
    found = [path for name in (_PROGRAM, _BUFFERS) for path in folder.glob(f"*{name}")]
    return sum(path.stat().st_size for path in found) if len(found) == 2 else 0

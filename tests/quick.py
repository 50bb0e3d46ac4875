"""Provides XLA's flags for programs that compile longer than they run."""

import contextlib
import os
from collections.abc import Iterator

from train.evidence.short_compiles import OLD_EMITTERS

FLAGS = " ".join(
    (
        "--xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",  # the cores are busy with other tests
        *OLD_EMITTERS,
    )
)


def flags(*, devices: int = 1) -> str:
    """Returns XLA_FLAGS for a process with so many fake CPU devices."""
    return f"--xla_force_host_platform_device_count={devices} {FLAGS}"


def environment(*, devices: int = 1, **more: str) -> dict[str, str]:
    """Returns this process's variables, and those of one that compiles quickly, on CPU."""
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags(devices=devices)} | more


@contextlib.contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """Sets an environment variable while active, and restores it afterwards."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before

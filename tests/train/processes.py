"""Starts several real processes on this machine that jax.distributed joins to one run."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tests import quick
from tests.root import ROOT


class Member(NamedTuple):
    """Holds one process; `log` takes what it prints."""

    process: subprocess.Popen
    log: Path

    def output(self) -> str:
        return self.log.read_text()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(
    arguments: list[str], folder: Path, *, processes: int, devices: int, **environment: str
) -> list[Member]:
    """Starts `python ARGUMENTS` in each process; `train.distributed.start()` there connects them.

    Args:
      arguments: arguments of Python, such as ["-m", "tests.train.some_module"].
      folder: folder for the logs, named after the processes; earlier logs are replaced.
      processes: number of processes; a single one connects to nothing.
      devices: number of fake CPU devices of each.
      environment: further variables.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    members = []
    for index in range(processes):
        settings = {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": quick.flags(devices=devices),
            "NPROC": "16",  # fewer threads than devices would wait for each other forever
            "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        if processes > 1:
            settings |= {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(index),
            }
        log = folder / f"process_{index}.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=os.environ | settings | environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        members.append(Member(process, log))
    return members


def wait(members: list[Member], timeout: float = 300) -> list[int]:
    """Returns the exit codes; kills what still runs after `timeout` seconds."""
    end = time.monotonic() + timeout
    try:
        return [m.process.wait(max(0.1, end - time.monotonic())) for m in members]
    except subprocess.TimeoutExpired as error:
        output = "\n".join(m.output()[-2000:] for m in members)
        raise AssertionError(f"still running after {timeout} s:\n{output}") from error
    finally:
        kill(members)


def finish(members: list[Member], timeout: float = 300) -> list[str]:
    """Returns what the processes printed; all of them must end well."""
    codes = wait(members, timeout)
    outputs = [member.output() for member in members]
    assert codes == [0] * len(members), f"exit codes {codes}\n" + "\n".join(outputs)
    return outputs


def kill(members: list[Member]) -> None:
    for member in members:
        member.process.kill()
        member.process.wait()

"""Finds the processes of a run: from flags, or from what the cluster's launcher has set."""

from collections.abc import Mapping
from typing import NamedTuple

import jax

from hydrahead_jax.errors import UserError
from train.distributed.abort import speak_on_abort

AUTO = "auto"
_JOIN_SECONDS = 300
# jax aborts when a process is silent for this long; our monitor reports it much earlier.
_ABORT_SECONDS = 600
_SHUTDOWN_SECONDS = 60


class Cluster(NamedTuple):
    """Describes the processes of a run; jax finds out what is None, because it knows the launcher.

    Attributes:
      coordinator: host:port of process 0.
      processes: number of processes.
      process: index of this process.
    """

    coordinator: str | None
    processes: int | None
    process: int | None


def find_cluster(
    coordinator: str | None, processes: int | None, process: int | None, env: Mapping[str, str]
) -> Cluster | None:
    """Returns the cluster of this process, None where it is alone.

    Flags come first, then JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and JAX_PROCESS_ID (or
    the JOB_COMPLETION_INDEX of a Kubernetes job), then SLURM, Open MPI and TPU slices on GKE.

    Raises:
      UserError: some of the three are missing or do not fit together.
    """
    if coordinator == AUTO:
        return Cluster(None, None, None)
    if (coordinator, processes, process) != (None, None, None):
        return _checked(coordinator, processes, process, "--coordinator, --processes, --process")
    if "JAX_COORDINATOR_ADDRESS" in env and "JAX_NUM_PROCESSES" in env:
        index = env.get("JAX_PROCESS_ID", env.get("JOB_COMPLETION_INDEX"))
        names = "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID"
        numbers = [_integer(text, names) for text in (env["JAX_NUM_PROCESSES"], index)]
        return _checked(env["JAX_COORDINATOR_ADDRESS"], *numbers, names)
    known_to_jax = _slurm(env) or _open_mpi(env) or _tpu_slice(env)
    return Cluster(None, None, None) if known_to_jax else None


def connect(cluster: Cluster) -> None:
    """Joins the other processes; call it before any computation.

    Raises:
      UserError: the other processes cannot be found.
    """
    jax.config.update("jax_enable_preemption_service", False)  # stopping.py handles signals
    speak_on_abort(lambda: _not_found(f"not all of them came within {_JOIN_SECONDS} s"))
    try:
        jax.distributed.initialize(
            *cluster,
            initialization_timeout=_JOIN_SECONDS,
            heartbeat_timeout_seconds=_ABORT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(_not_found(str(error).splitlines()[0])) from error


def _not_found(reason: str) -> str:
    return (
        f"the processes of this run could not find each other: {reason}; check that all of them "
        f"were started and that each can reach the address of --coordinator"
    )


def _checked(coordinator, processes, process, names: str) -> Cluster | None:
    if processes == 1 and process in (None, 0):
        return None
    if None in (coordinator, processes, process):
        raise UserError(f"several processes need all of {names}")
    host, colon, port = coordinator.rpartition(":")
    if not (host and colon and port.isdigit() and 0 < int(port) < 65536):
        raise UserError(f"the coordinator {coordinator!r} must be of the form host:port")
    if not 0 <= process < processes:
        raise UserError(f"process {process} must be one of 0 to {processes - 1}")
    return Cluster(coordinator, processes, process)


def _integer(text: str | None, names: str) -> int | None:
    if text is None or text.isdigit():
        return None if text is None else int(text)
    raise UserError(
        f"{text!r} is not a number; correct {names}, which describe the processes of a run"
    )


def _slurm(env: Mapping[str, str]) -> bool:
    """Returns whether srun started this task; a batch script itself has no step."""
    needed = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    return all(name in env for name in needed) and int(env.get("SLURM_NTASKS", "1")) > 1


def _open_mpi(env: Mapping[str, str]) -> bool:
    return int(env.get("OMPI_COMM_WORLD_SIZE", "1")) > 1


def _tpu_slice(env: Mapping[str, str]) -> bool:
    hosts = env.get("TPU_WORKER_HOSTNAMES", "")
    return "," in hosts or int(env.get("MEGASCALE_NUM_SLICES", "1")) > 1

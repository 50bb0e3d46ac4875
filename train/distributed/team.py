"""Exchanges messages between the processes of a run, through the coordination service of jax."""

import itertools
import json
import socket
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
from jax._src import distributed as jax_distributed  # the client has no public name

from hydrahead_jax.errors import UserError
from hydrahead_jax.json_file import plain

T = TypeVar("T")
_PATIENCE_SECONDS = 10
_BEATS = "hydrahead/beats/"
_numbers = itertools.count()


class PeerLost(Exception):
    """Says that another process is dead or late; the message is one sentence that names it."""


class Beat(NamedTuple):
    """Holds the last heartbeat of a process.

    Attributes:
      count: number of the heartbeat.
      step: last step of the run that the process began.
      doing: what it does, in words, such as "step" or "barrier save".
      host: name of its machine.
      left: why the process has ended, if it has.
    """

    count: int
    step: int
    doing: str
    host: str
    left: str | None = None


def count() -> int:
    """Returns the number of processes of this run."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def index() -> int:
    """Returns the index of this process."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def is_first() -> bool:
    """Returns whether this process prints and writes files."""
    return index() == 0


def host_name() -> str:
    return socket.gethostname()


def client():
    """Returns the coordination service's client; it exists where there are several processes."""
    return jax_distributed.global_state.client


def coordinator_answers() -> bool:
    """Returns whether process 0's machine still accepts connections to the service."""
    host, _, port = jax_distributed.global_state.coordinator_address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def publish(beat: Beat) -> None:
    put(f"{_BEATS}{index()}", list(beat))


def beats() -> dict[int, Beat]:
    """Returns the last heartbeat of every process that has sent one."""
    return {int(name): Beat(*value) for name, value in folder(_BEATS).items()}


def put(key: str, value) -> None:
    client().key_value_set(key, json.dumps(value), allow_overwrite=True)


def folder(prefix: str) -> dict:
    """Returns the values below `prefix`, which ends in "/", by their keys without the prefix."""
    return {
        key.rpartition("/")[2]: json.loads(value)
        for key, value in client().key_value_dir_get(prefix)
    }


def agree(name: str, compute: Callable[[], T]) -> T:
    """Returns on every process what `compute` returns on process 0, passed as JSON.

    All processes call this in the same order. Waiting has no limit of its own: it ends when the
    first process is found dead.

    Raises:
      UserError: `compute` raised it on process 0.
    """
    if count() == 1:
        return compute()
    key = f"hydrahead/agreed/{next(_numbers)}/{name}"
    if not is_first():
        answer = _wait_for(key)
        if "error" in answer:
            raise UserError(answer["error"])
        return answer["value"]
    try:
        answer = {"value": compute()}
    except UserError as error:
        put(key, {"error": str(error)})
        raise
    put(key, answer)
    return plain(answer["value"])


def _wait_for(key: str) -> dict:
    while True:
        try:
            return json.loads(client().blocking_key_value_get(key, _PATIENCE_SECONDS * 1000))
        except jax.errors.JaxRuntimeError as error:
            if not is_timeout(error):
                raise


def barrier(name: str, timeout: float) -> None:
    """Returns when all processes have reached the barrier.

    Args:
      name: name for the message where a process does not come.
      timeout: seconds to wait.

    Raises:
      PeerLost: a process did not come in time; the message names it.
    """
    if count() == 1:
        return
    key = f"hydrahead/barriers/{next(_numbers)}/"
    put(f"{key}{index()}", True)
    try:
        client().wait_at_barrier(key, int(timeout * 1000))
    except jax.errors.JaxRuntimeError as error:
        if not is_timeout(error):
            raise
        late = sorted(set(range(count())) - {int(name) for name in folder(key)})
        known = beats()
        names = ", ".join(describe(i, known.get(i)) for i in late) or "a process"
        raise PeerLost(
            f"barrier {name!r}: after {timeout:.0f} s still without {names}; start all "
            f"processes again, and they continue from the last checkpoint"
        ) from error


def is_timeout(error: Exception) -> bool:
    return "DEADLINE_EXCEEDED" in str(error)


def describe(process: int, beat: Beat | None) -> str:
    """Names a process, as in "process 3 (host tpu-3, last step 120)"."""
    if beat is None:
        return f"process {process} (never heard of)"
    return f"process {process} (host {beat.host}, last step {beat.step})"

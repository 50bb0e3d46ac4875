"""What the processes of a run tell each other, through the coordination service of jax."""

import itertools
import json
import socket
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
from jax._src import distributed as jax_distributed  # the client has no public name

from hydrahead_jax.errors import UserError

T = TypeVar("T")
_PATIENCE_SECONDS = 10
_BEATS = "hydrahead/beats/"
_numbers = itertools.count()


class PeerLost(Exception):
    """Another process is dead or late; the message is one sentence that names it."""


class Beat(NamedTuple):
    """What a process last said of itself.

    Attributes:
      count: goes up with every beat.
      step: of the run, the last one that it began.
      doing: in words, such as "step" or "barrier save".
      host: its machine.
      left: why it has ended, if it has.
    """

    count: int
    step: int
    doing: str
    host: str
    left: str | None = None


def count() -> int:
    """Processes of this run."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def index() -> int:
    """Of this process."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def is_first() -> bool:
    """Whether this process prints and writes files."""
    return index() == 0


def host_name() -> str:
    return socket.gethostname()


def client():
    """The coordination service's client; there are several processes."""
    return jax_distributed.global_state.client


def coordinator_answers() -> bool:
    """Whether the machine of process 0 still takes connections for the coordination service."""
    host, _, port = jax_distributed.global_state.coordinator_address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def publish(beat: Beat) -> None:
    put(f"{_BEATS}{index()}", list(beat))


def beats() -> dict[int, Beat]:
    """The last beat of every process that has sent one."""
    return {int(name): Beat(*value) for name, value in folder(_BEATS).items()}


def put(key: str, value) -> None:
    client().key_value_set(key, json.dumps(value), allow_overwrite=True)


def folder(prefix: str) -> dict:
    """Keys below `prefix`, which ends in "/", without it -> their values."""
    return {
        key.rpartition("/")[2]: json.loads(value)
        for key, value in client().key_value_dir_get(prefix)
    }


def agree(name: str, compute: Callable[[], T]) -> T:
    """What `compute` returns on process 0, as JSON, on every process.

    All processes call this in the same order. Waiting has no limit of its own: it ends when the
    first process is found dead.

    Raises:
      UserError: `compute` did so on process 0.
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
    return json.loads(json.dumps(answer["value"]))


def _wait_for(key: str) -> dict:
    while True:
        try:
            return json.loads(client().blocking_key_value_get(key, _PATIENCE_SECONDS * 1000))
        except jax.errors.JaxRuntimeError as error:
            if not is_timeout(error):
                raise


def barrier(name: str, timeout: float) -> None:
    """Returns when all processes are here.

    Args:
      name: said where one does not come.
      timeout: in seconds.

    Raises:
      PeerLost: one did not come in time; names it.
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
    """ "process 3 (host tpu-3, last step 120)"."""
    if beat is None:
        return f"process {process} (never heard of)"
    return f"process {process} (host {beat.host}, last step {beat.step})"

"""Runs one training as one process or as many: start-up, heartbeats, barriers, lost processes."""

import contextlib
import os

import jax

from train.distributed.abort import EXIT_CODE as EXIT_CODE
from train.distributed.abort import say_and_exit
from train.distributed.cluster import connect, find_cluster
from train.distributed.monitor import Monitor
from train.distributed.stopping import Gate as Gate
from train.distributed.stopping import Stopped as Stopped
from train.distributed.team import PeerLost as PeerLost
from train.distributed.team import agree as agree
from train.distributed.team import barrier as barrier
from train.distributed.team import count as count
from train.distributed.team import index as index
from train.distributed.team import is_first as is_first

PEER_TIMEOUT = 60.0
_monitor: Monitor | None = None


def start(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Joins the other processes of the run, if there are any; call it before any computation.

    Args:
      coordinator: host:port of process 0, or "auto" where jax finds the cluster by itself.
      processes: number of processes.
      process: index of this process.

    Raises:
      UserError: the arguments do not fit together, or the other processes cannot be found.
    """
    global _monitor
    cluster = find_cluster(coordinator, processes, process, os.environ)
    if cluster is None or _monitor is not None:
        return
    connect(cluster)
    if count() > 1:
        _monitor = Monitor(PEER_TIMEOUT)
        _monitor.start()


@contextlib.contextmanager
def watched(gate: Gate, peer_timeout: float):
    """While active, a signal stops all processes at the same step.

    Also sets the peer timeout, which stays set afterwards.
    """
    if _monitor is None:
        yield
        return
    _monitor.gate, _monitor.peer_timeout = gate, peer_timeout
    try:
        yield
    finally:
        _monitor.gate = None  # the timeout stays, because a lost peer may have ended the steps
        _monitor.progress(None, "after the steps", None)


def progress(step: int, timeout: float | None) -> None:
    """Tells the monitor that a step begins and may take `timeout` seconds, None for any time."""
    if _monitor is not None:
        _monitor.progress(step, "step", timeout)


def say(sentence: str) -> None:
    """Prints a sentence, once for all processes."""
    if is_first():
        print(sentence, flush=True)


def finish() -> None:
    """Ends the run in good order: returns when all processes have called it."""
    if _monitor is not None:
        _monitor.finish()
        jax.distributed.shutdown()


def fail(sentence: str, code: int = 1) -> None:
    """Ends this process after telling the others why; returns where there are no others.

    A sentence that the first process prints as well is printed once.
    """
    if _monitor is not None:
        is_said = _monitor.leave(sentence)
        say_and_exit(None if is_said else sentence, code)


def wait_for_verdict() -> None:
    """Ends this process if a dead peer is found; call it after an error that one can cause."""
    if _monitor is not None:
        _monitor.wait_for_verdict()

"""Makes batches and sends them to the devices ahead of the steps that need them."""

import queue
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from train.data.batches import Batch, Batches

_AHEAD = 1  # batches in the queue; one more is being made
_LOOK_SECONDS = 0.2


class Ready(NamedTuple):
    """Holds a batch that is on the devices.

    Attributes:
      batch: this process' rows, numpy.
      placed: the batch as the step takes it.
      position: position in the data after this batch.
    """

    batch: Batch
    placed: Batch
    position: dict


class Prefetch:
    """Runs a thread that stays a batch or two ahead; `next` raises the error of its batch."""

    def __init__(self, batches: Batches, place: Callable[[Batch], Batch]):
        self._batches, self._place = batches, place
        self._queue: queue.Queue = queue.Queue(_AHEAD)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
        self._thread.start()

    def next(self) -> tuple[Ready, float]:
        """Returns the next batch, and the seconds spent waiting for it."""
        began = time.monotonic()
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item, time.monotonic() - began

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._over.is_set():
            try:
                batch = next(self._batches)
                item = Ready(batch, self._place(batch), self._batches.get_state())
            except BaseException as error:
                item = error
            while not self._over.is_set():
                try:
                    self._queue.put(item, timeout=_LOOK_SECONDS)
                    break
                except queue.Full:
                    continue
            if isinstance(item, BaseException):
                return

"""Ends a run at a step boundary on SIGTERM and the first SIGINT, the same step on all processes."""

import contextlib
import signal
import threading

from train.distributed import team

_PREFIX = "hydrahead/stopping/"
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """Says that a signal ended the run in good order; the message says how to continue."""


class Gate:
    """Lets steps begin until a signal arrives.

    With several processes each publishes the last step that it began. It waits until all have, and
    stops after the largest of these steps.

    Attributes:
      is_wanted: this process got a signal that the others may not know of.
    """

    def __init__(self):
        self.is_wanted = False
        self._condition = threading.Condition()
        self._step, self._closed, self._last = 0, False, None

    @contextlib.contextmanager
    def signals(self):
        """Handles the signals while active; a second SIGINT interrupts at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _handle(self, number: int, _frame) -> None:
        if number == signal.SIGINT and self.is_wanted:
            raise KeyboardInterrupt
        self.is_wanted = True

    def opens_for(self, step: int) -> bool:
        """Returns whether `step` of the run may begin; blocks while the processes agree."""
        if team.count() == 1:
            return not self.is_wanted
        with self._condition:
            self._condition.wait_for(lambda: not self._closed or self._last is not None)
            if self._last is not None and step > self._last:
                return False
            self._step = step
            return True

    def close(self) -> None:
        """Asks all processes to stop; call it repeatedly until all have agreed."""
        with self._condition:
            was_closed, self._closed = self._closed, True
        if not was_closed:
            team.put(f"{_PREFIX}{team.index()}", self._step)
        began = team.folder(_PREFIX)
        if len(began) == team.count():
            with self._condition:
                self._last = max(began.values())
                self._condition.notify_all()

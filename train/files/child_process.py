"""Ends a process that another one started when that one ends, however it ends."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """Ends this process of `multiprocessing` at once when the process that started it is gone.

    A process that is killed tells its children nothing; they would go on writing to a run folder
    that the next command takes for its own.
    """
    threading.Thread(target=_wait_and_end, daemon=True).start()


def _wait_and_end() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)

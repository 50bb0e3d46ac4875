"""Prints a sentence before the abort by which jax's coordination client ends a process."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable

EXIT_CODE = 75  # "try again later": the run continues when it is started again
_handlers = []  # keeps them alive: the C library holds only a pointer


def speak_on_abort(sentence: Callable[[], str | None]) -> None:
    """Makes the process print a sentence and exit on SIGABRT; None prints nothing.

    The client calls abort() in a thread of its own, as soon as process 0 is gone: Python's signal
    handlers run in the main thread only, which may be in a collective that never ends.
    """
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: say_and_exit(sentence()))
    _handlers.append(handler)
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal.restype = ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))


def say(sentence: str) -> None:
    print(f"error: {sentence}", file=sys.stderr, flush=True)


def say_and_exit(sentence: str | None, code: int = EXIT_CODE) -> None:
    """Ends the process at once: peers are gone, so that an orderly exit would hang."""
    if sentence is not None:
        say(sentence)
    sys.stdout.flush()
    os._exit(code)

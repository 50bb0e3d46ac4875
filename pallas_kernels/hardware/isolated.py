"""Runs a function in a fresh interpreter, because compilers read their flags once per process."""

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

_MAIN = """
import os, sys
folder, sys.path = sys.argv[1], sys.argv[2:]
from pallas_kernels.hardware.isolated import answer
answer(folder)
os._exit(0)  # also where a thread still compiles
"""


class IsolatedError(RuntimeError):
    """Says that the fresh interpreter failed; the message ends with what it printed last."""


def run_isolated(
    function: Callable, *args, environment: Mapping[str, str], timeout_s: float = 3600.0
):
    """Computes `function(*args)` in a new process with `environment` added to this one's.

    Args:
      function: importable by name, or a functools.partial of such a function; so must be every
        function among `args`, because they travel as a pickle.

    Raises:
      NotImplementedError: the function did, with the same message.
      IsolatedError: anything else went wrong.
    """
    with tempfile.TemporaryDirectory(prefix="isolated_") as folder:
        try:
            Path(folder, "task").write_bytes(pickle.dumps((function, args)))
        except (pickle.PicklingError, AttributeError) as error:
            raise IsolatedError(f"a new process cannot import this by name: {error}") from None
        paths = [str(Path(entry).absolute()) for entry in sys.path]
        process = subprocess.run(
            [sys.executable, "-c", _MAIN, folder, *paths],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            text=True,
        )
        if not Path(folder, "answer").exists():
            raise IsolatedError(f"exit {process.returncode}: {process.stdout[-4000:]}")
        kind, value = pickle.loads(Path(folder, "answer").read_bytes())
    if kind == "refused":
        raise NotImplementedError(value)
    if kind == "failed":
        raise IsolatedError(value)
    return value


@contextlib.contextmanager
def dump_folder(kept: str | None) -> Iterator[str]:
    """Yields a folder for a compiler's dumps: a new one at `kept`, or a temporary one if None.

    Raises:
      FileExistsError: `kept` exists; dumps of two programs would mix.
    """
    if kept is None:
        with tempfile.TemporaryDirectory(prefix="dump_") as folder:
            yield folder
    else:
        Path(kept).mkdir(parents=True)
        yield kept


def answer(folder: str) -> None:
    """Computes the task that lies in `folder`: the new process's part."""
    try:
        function, args = pickle.loads(Path(folder, "task").read_bytes())
        result = pickle.dumps(("done", function(*args)))
    except NotImplementedError as error:
        result = pickle.dumps(("refused", str(error)))
    except Exception:
        result = pickle.dumps(("failed", traceback.format_exc()[-4000:]))
    Path(folder, "partial").write_bytes(result)
    Path(folder, "partial").rename(Path(folder, "answer"))

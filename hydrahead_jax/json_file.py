"""Reads JSON, and replaces files atomically."""

import contextlib
import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from hydrahead_jax.errors import UserError

PARTIAL = ".partial"  # ends the name of a file that is being written


@contextlib.contextmanager
def replacing(path: Path, mode: str = "w") -> Iterator[IO]:
    """Opens a file beside `path` that takes its place at the end, or is removed after an error.

    A reader sees either the old content or all of the new one, also after a crash. Links and mode
    bits are those that `open` would leave; a pipe or device is written to directly.

    Raises:
      OSError: `open` would raise it too.
    """
    encoding = None if "b" in mode else "utf-8"
    if path.exists() and not path.is_file():
        with path.open(mode, encoding=encoding) as file:
            yield file
        return
    path = Path(os.path.realpath(path))
    partial = path.with_name(path.name + PARTIAL)
    try:
        with partial.open(mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            partial.chmod(stat.S_IMODE(path.stat().st_mode))
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def check_target(path: Path) -> None:
    """Raises UserError where no file can be at `path`, before what it shall hold is computed."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise UserError(
            f"{path} cannot be written: there is no folder {path.parent.name}; make it, or name "
            "another file"
        )


def dumps(value, indent: int | None = None) -> str:
    """Returns `value` as JSON; a number that is not finite, which JSON does not have, is null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def plain(value) -> Any:
    """Returns what reading `value` from a file that `write_json` wrote gives."""
    return json.loads(dumps(value))


def write_json(path: Path, value) -> None:
    """Writes a JSON file completely or not at all; numbers that are not finite become null."""
    text = dumps(value, indent=2)
    with replacing(path) as file:
        file.write(text + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file; NaN and Infinity, which some files hold, are read too.

    Raises:
      UserError: there is no such file, or it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}; check that the path is right"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}; copy or write it again") from error


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

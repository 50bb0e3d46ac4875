"""Manages folders and files computed from recorded inputs; other inputs are refused."""

from collections.abc import Callable
from pathlib import Path

from hydrahead_jax.errors import UserError
from hydrahead_jax.json_file import PARTIAL, plain, read_json, write_json

_SHOWN = 3
_LONGEST_VALUE = 60


def open_folder(
    folder: Path,
    record: str,
    inputs: dict,
    *,
    holds: str,
    advice: str,
    check: Callable[[Path, dict, dict], None] | None = None,
) -> bool:
    """Makes a folder for these inputs, or checks that it was made for the same.

    Args:
      folder: folder to make, or to resume.
      record: file in it that says what the inputs are.
      inputs: all that determines what the folder will hold, as JSON.
      holds: what such a folder holds, for messages.
      advice: what to do where it is refused.
      check: raises where the recorded inputs differ; `check_same` if None.

    Returns:
      Whether the folder existed already.

    Raises:
      UserError: the folder was made for other inputs, holds something else, or cannot be written.
    """
    path = folder / record
    try:
        if path.is_file():
            if check is None:
                check_same(folder, read_json(path), inputs, holds=holds, advice=advice)
            else:
                check(folder, read_json(path), inputs)
            return True
        if folder.exists() and not _is_new(folder, record):
            raise UserError(f"{folder} exists and holds no {holds}; {advice}")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, inputs)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}; {advice}") from error
    return False


def _is_new(folder: Path, record: str) -> bool:
    """Returns whether nothing lies in it but what a process left that was killed as it began."""
    begun = record + PARTIAL
    return folder.is_dir() and all(path.name == begun for path in folder.iterdir())


def check_same(folder: Path, old: dict, new: dict, *, holds: str, advice: str) -> None:
    """Raises UserError, naming the first differences, where the recorded inputs differ."""
    found = differences(old, plain(new))
    if found:
        more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise UserError(
            f"{folder} holds a different {holds}: {', '.join(found[:_SHOWN])}{more}; {advice}, "
            "or delete this one"
        )


def cached(path: Path, inputs: dict, compute: Callable[[], dict]) -> dict:
    """Returns the result of `compute` as JSON, from `path` if it has that of the same inputs."""
    inputs = plain(inputs)
    if path.is_file():
        found = read_json(path)
        if found["of"] == inputs:
            return found["result"]
    result = plain(compute())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"of": inputs, "result": result})
    return result


def differences(old, new, where: str = "") -> list[str]:
    """Returns sentences such as "seed is 1 there and 2 here", in field order."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = list(dict.fromkeys([*old, *new]))
        pairs = [(name, old.get(name), new.get(name)) for name in names]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(str(i), a, b) for i, (a, b) in enumerate(zip(old, new, strict=True))]
    else:
        return [] if old == new else [f"{where} is {_short(old)} there and {_short(new)} here"]
    return [
        text
        for name, a, b in pairs
        for text in differences(a, b, f"{where}.{name}" if where else name)
    ]


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."

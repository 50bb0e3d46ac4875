"""JSON files that are whole or not there."""

import json
from pathlib import Path

from hydrahead_jax.errors import UserError


def write_json(path: Path, value) -> None:
    """All of the file or nothing, even if the process is killed."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    partial.replace(path)


def read_json(path: Path):
    """What `write_json` wrote.

    Raises:
      UserError: it is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error

"""Checks the room for checkpoints, and says what to do when there is none."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import jax

from hydrahead_jax.errors import UserError
from train.files.run_folder import CHECKPOINTS

_GB = 1e9


class WriteFailed(UserError):
    """Says that a file of the run could not be written; the message names the last checkpoint."""


def tree_bytes(tree) -> int:
    """Returns the bytes of arrays or of their shapes, all shards together."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def check_space(folder: Path, checkpoint: int, keep: int, say: Callable[[str], None]) -> None:
    """Warns where the disk cannot hold `keep` checkpoints and the one being written.

    Args:
      folder: folder of the run; checkpoints that it holds already count as room.
      checkpoint: bytes of the largest checkpoint.
      keep: number of checkpoints that stay.
      say: takes one sentence.

    Raises:
      UserError: there is no room even for one checkpoint and the next.
    """
    free = shutil.disk_usage(folder).free
    there = sum(path.stat().st_size for path in (folder / CHECKPOINTS).rglob("*") if path.is_file())
    room, text = free + there, f"a checkpoint takes {checkpoint / _GB:.3g} GB"
    if room < 2 * checkpoint:
        raise UserError(
            f"{text}, and {folder} has room for {room / _GB:.3g} GB, less than one and the next; "
            "free space, or choose another disk with run=..."
        )
    if room < (keep + 1) * checkpoint:
        say(
            f"warning: {text}, and {folder} has room for {room / _GB:.3g} GB, less than {keep} and "
            f"the one being written; lower running.keep_checkpoints or free space"
        )


def write_failed(what: str, folder: Path, error: Exception, last: int | None) -> WriteFailed:
    """Turns an error of the file system into one sentence.

    Args:
      what: what could not be written.
      folder: folder of the run.
      error: the error that was raised.
      last: step of the newest complete checkpoint.
    """
    inner = re.search(r"([^:\]]+) \[os_error_code=", str(error))  # the form of tensorstore's errors
    reason = getattr(error, "strerror", None) or (inner[1].strip() if inner else None)
    reason = reason or (str(error).splitlines() or [repr(error)])[0]
    kept = (
        "no checkpoint had been written"
        if last is None
        else f"the last complete checkpoint is step {last}"
    )
    return WriteFailed(
        f"could not write {what} in {folder}: {reason}; {kept}; make the folder writable or free "
        f"space, and give the same command again to continue"
    )

"""Detects changed sources by checksums of all of their content."""

import concurrent.futures
import hashlib
import os
from collections.abc import Callable
from typing import NamedTuple

from hydrahead_jax.errors import UserError
from hydrahead_jax.text_files.names import shown
from train.data.documents.find import SourceFile

_CHUNK = 2**22


class Fingerprint(NamedTuple):
    """Identifies the content of a file.

    Attributes:
      content: name, size and checksum; JSON, the same wherever the sources lie.
      state: size, time of change and place on the disk; quick to look up.
    """

    content: list
    state: tuple


def fingerprints(
    files: list[SourceFile], workers: int, advance: Callable[[int], None] = lambda done: None
) -> list[Fingerprint]:
    """Computes the fingerprints of all files, `workers` at a time.

    Args:
      advance: called with the number of bytes read so far.

    Raises:
      UserError: a file cannot be read.
    """
    done = 0
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        found = []
        for file, result in zip(files, pool.map(_fingerprint, files), strict=True):
            found.append(result)
            done += file.bytes
            advance(done)
    return found


def first_changed(files: list[SourceFile], before: list[Fingerprint]) -> SourceFile | None:
    """Returns the first file whose content has changed, None if there is none.

    Files whose size, times and place on the disk are the same are not read again.
    """
    for file, old in zip(files, before, strict=True):
        try:
            is_same = _state(os.stat(file.path)) == old.state
            if not is_same and _fingerprint(file).content != old.content:
                return file
        except (OSError, UserError):
            return file
    return None


def _fingerprint(file: SourceFile) -> Fingerprint:
    digest, size = hashlib.blake2b(digest_size=16), 0
    try:
        with file.path.open("rb") as opened:
            state = _state(os.fstat(opened.fileno()))
            while chunk := opened.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
    except OSError as error:
        raise UserError(
            f"cannot read {shown(file.path)}: {error.strerror}; make it readable, or leave it out"
        ) from error
    if size != file.bytes:
        raise UserError(f"{shown(file.path)} changed while it was read; run the command again")
    return Fingerprint([file.name, size, digest.hexdigest()], state)


def _state(about: os.stat_result) -> tuple:
    return about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_dev, about.st_ino

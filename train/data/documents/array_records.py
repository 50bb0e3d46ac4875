"""Reads the records of ArrayRecord files."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordReader

from hydrahead_jax.errors import UserError
from hydrahead_jax.text_files.names import shown
from hydrahead_jax.text_files.parse import Unusable, parse_json

_AT_A_TIME = 64
_OPTIONS = "readahead_buffer_size:1M,max_parallelism:1"
_ERRORS = (RuntimeError, IndexError, UnicodeEncodeError)


def look_at(path: Path) -> tuple[int, bool]:
    """Returns the number of records, and whether they are JSON.

    They count as JSON where the first record is an object.

    Raises:
      UserError: the file is damaged.
    """
    with _opened(path, "") as reader:
        count = reader.num_records()
        first = reader.read([0])[0] if count else b""
    try:
        return count, isinstance(parse_json(first), dict)
    except Unusable:
        return count, False


def records(path: Path, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """Yields records `start` to `stop` and their numbers from 1.

    Raises:
      UserError: the file is damaged.
    """
    with _opened(path, _OPTIONS) as reader:
        for first in range(start, stop, _AT_A_TIME):
            last = min(first + _AT_A_TIME, stop)
            yield from enumerate(reader.read(first, last), start=first + 1)


@contextlib.contextmanager
def _opened(path: Path, options: str) -> Iterator[ArrayRecordReader]:
    try:
        with contextlib.closing(ArrayRecordReader(str(path), options)) as reader:
            yield reader
    except _ERRORS as error:
        raise UserError(
            f"cannot read {shown(path)}: {error}; copy the file again, or leave it out"
        ) from error

"""The documents of a part, one after another; a few of them are in memory."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pyarrow
import pyarrow.parquet
from array_record.python.array_record_module import ArrayRecordReader

from hydrahead_jax.errors import UserError
from train.prepare.sources import Kind, Part

LONGEST_TEXT = 2**23
LONGEST_RECORD = 2**27
_AT_A_TIME = 64


class Document(NamedTuple):
    """Attributes:
    text: None where it cannot be used.
    flaw: then why, a sentence without its full stop.
    done: share of the part that is read, this document included.
    """

    text: str | None
    flaw: str
    done: float


class _Record(NamedTuple):
    """`raw` is None where it is longer than LONGEST_RECORD bytes; `where` names it."""

    raw: bytes | str | None
    where: Callable[[], str]
    done: float


def read_part(part: Part, text_field: str) -> Iterator[Document]:
    """The documents in their order, unusable ones included.

    Raises:
      UserError: a file cannot be read.
    """
    readers = {
        "text": _files,
        "jsonl": _lines,
        "compressed_jsonl": _compressed_lines,
        "parquet": _rows,
        "text_records": _records,
        "json_records": _records,
    }
    try:
        for raw, where, done in readers[part.kind](part, text_field):
            text, flaw = _text(raw, part.kind, text_field)
            yield Document(text, f"{where()} {flaw}" if flaw else "", done)
    except (OSError, EOFError, pyarrow.ArrowException, RuntimeError) as error:
        raise UserError(f"cannot read {part.paths[0]}: {error}") from error


def _text(raw: bytes | str | None, kind: Kind, text_field: str) -> tuple[str | None, str]:
    """The text, or what is wrong with it; halves of surrogate pairs are replaced."""
    if raw is None:
        return None, f"has more than {LONGEST_RECORD} bytes"
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw
    if "json" in kind:
        try:
            text = json.loads(text)[text_field]
        except (ValueError, KeyError, TypeError, RecursionError):
            return None, f'holds no JSON object with a "{text_field}"'
        if not isinstance(text, str | None):
            return None, f'holds a "{text_field}" that is not text'
    text = text or ""
    if len(text) > LONGEST_TEXT:
        return None, f"has more than {LONGEST_TEXT} characters"
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8"), ""


def _files(part: Part, text_field: str) -> Iterator[_Record]:
    for index, path in enumerate(part.paths, start=1):
        fits = path.stat().st_size <= LONGEST_RECORD
        raw = path.read_bytes() if fits else None
        yield _Record(raw, lambda path=path: str(path), index / len(part.paths))


def _lines(part: Part, text_field: str) -> Iterator[_Record]:
    [path] = part.paths
    with path.open("rb") as file:
        if part.start:
            file.seek(part.start - 1)
            _line(file)
        while (at := file.tell()) < part.stop:
            line = _line(file)
            done = min(1.0, (file.tell() - part.start) / (part.stop - part.start))
            if line is None or line.strip():
                yield _Record(line, lambda at=at: f"{path}, line {_number(path, at)},", done)


def _line(file: BinaryIO) -> bytes | None:
    """The next line, or None in place of one that is too long."""
    line = file.readline(LONGEST_RECORD)
    if len(line) < LONGEST_RECORD or line.endswith(b"\n"):
        return line
    while (rest := file.readline(LONGEST_RECORD)) and not rest.endswith(b"\n"):
        pass
    return None


def _number(path: Path, at: int) -> int:
    """Of the line that begins at that byte, from 1."""
    with path.open("rb") as file:
        return 1 + sum(file.read(min(2**20, at - i)).count(b"\n") for i in range(0, at, 2**20))


def _compressed_lines(part: Part, text_field: str) -> Iterator[_Record]:
    [path] = part.paths
    codec = "gzip" if path.suffix == ".gz" else "zstd"
    with path.open("rb") as compressed:
        stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(compressed), codec)
        with io.BufferedReader(stream, 2**20) as file:
            number = 0
            while (line := _line(file)) != b"":
                number += 1
                done = min(1.0, compressed.tell() / part.bytes)
                if line is None or line.strip():
                    yield _Record(line, lambda n=number: f"{path}, line {n},", done)


def _rows(part: Part, text_field: str) -> Iterator[_Record]:
    [path] = part.paths
    with pyarrow.parquet.ParquetFile(path) as file:
        groups = range(part.start, part.stop)
        rows = sum(file.metadata.row_group(group).num_rows for group in groups)
        before = sum(file.metadata.row_group(group).num_rows for group in range(part.start))
        read = 0
        for batch in file.iter_batches(_AT_A_TIME, row_groups=list(groups), columns=[text_field]):
            for text in batch.column(0).to_pylist():
                read += 1
                where = lambda row=before + read: f"{path}, row {row},"
                yield _Record(text or "", where, read / rows)


def _records(part: Part, text_field: str) -> Iterator[_Record]:
    [path] = part.paths
    reader = ArrayRecordReader(str(path), options="readahead_buffer_size:1M,max_parallelism:1")
    try:
        for start in range(part.start, part.stop, _AT_A_TIME):
            stop = min(start + _AT_A_TIME, part.stop)
            for index, raw in enumerate(reader.read(start, stop), start=start + 1):
                done = (index - part.start) / (part.stop - part.start)
                fits = len(raw) <= LONGEST_RECORD
                where = lambda index=index: f"{path}, record {index},"
                yield _Record(raw if fits else None, where, done)
    finally:
        reader.close()

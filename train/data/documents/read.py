"""Reads the documents of a part one after another, with only a few of them in memory."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from hydrahead_jax.text_files.names import shown
from hydrahead_jax.text_files.parse import NotJson, Unusable, decode, parse_json, replace_surrogates
from hydrahead_jax.text_files.records import LONGEST_RECORD, is_blank, json_records, next_line
from hydrahead_jax.text_files.streams import open_stream
from train.data.documents.array_records import records
from train.data.documents.parquet import rows
from train.data.documents.parts import Part

LONGEST_TEXT = 2**23
_MARK = "\ufeff"


class Document(NamedTuple):
    """Holds a document, or a record that cannot be used as one.

    Attributes:
      text: the document's text; None where the record cannot be used, empty where it has no text.
      flaw: why the record cannot be used, as a phrase that follows its name.
      name: returns the file and the place in it.
      done: share of the part that is read, this document included.
      is_mended: whether halves of surrogate pairs were replaced.
    """

    text: str | None
    flaw: str
    name: Callable[[], str]
    done: float
    is_mended: bool = False


class _Record(NamedTuple):
    """Holds the bytes of a record.

    `raw` is None where the record is longer than LONGEST_RECORD bytes. `place` returns where it is
    in the file, an empty text for the complete file.
    """

    raw: bytes | None
    place: Callable[[], str]
    path: Path
    done: float


def read_part(part: Part, text_field: str) -> Iterator[Document]:
    """Yields the documents in their order, unusable ones included.

    Raises:
      UserError: a file cannot be read.
    """
    readers = {
        "text": _files,
        "lines": _lines,
        "json": _json,
        "parquet": _rows,
        "text_records": _records,
        "json_records": _records,
    }
    is_json = part.kind in ("lines", "json", "json_records")
    for record in readers[part.kind](part, text_field):
        name = lambda r=record: ", ".join([shown(r.path), *filter(None, [r.place()])])
        try:
            text = _text(record.raw, text_field if is_json else None)
            mended = replace_surrogates(text)
            yield Document(mended, "", name, record.done, mended != text)
        except Unusable as why:
            yield Document(None, str(why), name, record.done)


def _text(raw: bytes | None, text_field: str | None) -> str:
    """Returns the text of a record; in a JSON record it is the text of that field.

    Raises:
      Unusable: the record holds no text.
    """
    if raw is None:
        raise Unusable(f"has more than {LONGEST_RECORD} bytes")
    text = decode(raw) if text_field is None else _field(raw, text_field)
    if "\0" in text:
        raise Unusable("holds NUL characters, as UTF-16 and binary data do")
    if len(text) > LONGEST_TEXT:
        raise Unusable(f"has more than {LONGEST_TEXT} characters")
    return text.removeprefix(_MARK)


def _field(raw: bytes, text_field: str) -> str:
    try:
        value = parse_json(raw)
    except NotJson:
        value = None
    if not isinstance(value, dict) or text_field not in value:
        raise Unusable(f'holds no JSON object with a "{text_field}"')
    if not isinstance(value[text_field], str | None):
        raise Unusable(f'holds a "{text_field}" that is not text')
    return value[text_field] or ""


def _files(part: Part, text_field: str) -> Iterator[_Record]:
    for index, path in enumerate(part.paths, start=1):
        with open_stream(path) as (stream, _):
            raw = stream.read(LONGEST_RECORD + 1)
        fits = len(raw) <= LONGEST_RECORD
        yield _Record(raw if fits else None, lambda: "", path, index / len(part.paths))


def _lines(part: Part, text_field: str) -> Iterator[_Record]:
    [path] = part.paths
    with open_stream(path) as (file, _):
        if part.start:
            file.seek(part.start - 1)
            next_line(file)
        while (at := file.tell()) < part.stop and (line := next_line(file)) != b"":
            done = min(1.0, (file.tell() - part.start) / (part.stop - part.start))
            if line is None or not is_blank(line):
                yield _Record(line, lambda at=at: f"line {_number(path, at)}", path, done)


def _number(path: Path, at: int) -> int:
    """Returns the number, from 1, of the line that begins at that byte."""
    with path.open("rb") as file:
        return 1 + sum(file.read(min(2**20, at - i)).count(b"\n") for i in range(0, at, 2**20))


def _json(part: Part, text_field: str) -> Iterator[_Record]:
    [path] = part.paths
    for raw, place, done in json_records(path):
        yield _Record(raw, lambda place=place: place, path, done)


def _rows(part: Part, text_field: str) -> Iterator[_Record]:
    [path] = part.paths
    for number, raw, done in rows(path, text_field, part.start, part.stop):
        raw = raw or b""
        fits = len(raw) <= LONGEST_RECORD
        yield _Record(raw if fits else None, lambda n=number: f"row {n}", path, done)


def _records(part: Part, text_field: str) -> Iterator[_Record]:
    [path] = part.paths
    for number, raw in records(path, part.start, part.stop):
        done = (number - part.start) / (part.stop - part.start)
        fits = len(raw) <= LONGEST_RECORD
        yield _Record(raw if fits else None, lambda n=number: f"record {n}", path, done)

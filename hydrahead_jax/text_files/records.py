"""Cuts files of JSON into records: one a line, or the items of an array."""

import codecs
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hydrahead_jax.text_files.parse import BLANK, Unusable, parse_json
from hydrahead_jax.text_files.streams import compression, open_stream

LONGEST_RECORD = 2**27
_CHUNK = 2**20
_OUTSIDE_STRINGS = re.compile(rb'["\[\]{},]')
_STEPS = {b"[": 1, b"{": 1, b"]": -1, b"}": -1}
_INSIDE_STRINGS = re.compile(rb'["\\]')


class JsonRecord(NamedTuple):
    """Carries the bytes of a record that is not parsed, and says where it stands.

    Attributes:
      raw: None where it is longer than LONGEST_RECORD bytes.
      place: such as "line 3" or "item 3".
      done: share of the file that is read, this record included.
    """

    raw: bytes | None
    place: str
    done: float


def json_records(path: Path) -> Iterator[JsonRecord]:
    """Yields the records of a file of JSON, which may be compressed.

    They are its lines, blank ones left out. A file that ends in .json may also be one array, whose
    items they are, or one object over several lines.

    Raises:
      UserError: the file cannot be read.
    """
    form = _form(path)
    with open_stream(path) as (stream, file):
        size = max(1, os.fstat(file.fileno()).st_size)
        records = {"lines": lines, "array": array_items, "object": _object}[form](stream)
        place = {"lines": "line", "array": "item", "object": "item"}[form]
        for number, raw in records:
            yield JsonRecord(raw, f"{place} {number}", min(1.0, file.tell() / size))


def next_line(file: io.BufferedIOBase) -> bytes | None:
    """Reads to the next newline; b"" at the end, None in place of a line that is too long."""
    line = file.readline(LONGEST_RECORD)
    if len(line) < LONGEST_RECORD or line.endswith(b"\n"):
        return line
    while (rest := file.readline(LONGEST_RECORD)) and not rest.endswith(b"\n"):
        pass
    return None


def is_blank(raw: bytes) -> bool:
    """Says whether it is white space of JSON, a byte order mark left out."""
    return not raw.removeprefix(codecs.BOM_UTF8).strip(BLANK)


def lines(file: io.BufferedIOBase) -> Iterator[tuple[int, bytes | None]]:
    """Yields lines that are not blank, and their numbers from 1."""
    number = 0
    while (line := next_line(file)) != b"":
        number += 1
        if line is None or not is_blank(line):
            yield number, line


def array_items(file: io.BufferedIOBase) -> Iterator[tuple[int, bytes | None]]:
    """Yields the items of a JSON array, or of several in a row, and their numbers from 1.

    Brackets are counted and strings passed over; nothing else is checked, so an item need not be
    JSON.

    Raises:
      OSError: there is something beside arrays.
      EOFError: the last array does not end.
    """
    number = depth = in_this_array = 0
    item = _Item()
    for before, mark in _marks(file):
        item.add(before)
        if depth == 0 and mark:
            _check_outside(item.take())
            if mark != b"[":
                _check_outside(mark)
            depth, in_this_array = 1, 0
        elif depth == 1 and mark in (b",", b"]"):
            raw = item.take()
            if mark == b"," or in_this_array or raw is None or not is_blank(raw):
                number += 1
                in_this_array += 1
                yield number, raw
            depth -= mark == b"]"
        else:
            item.add(mark)
            depth += _STEPS.get(mark, 0)
            if depth == 0 and mark:
                raise OSError("its JSON array ends with }")
    if depth:
        raise EOFError("its JSON array does not end")
    _check_outside(item.take())


def _marks(file: io.BufferedIOBase) -> Iterator[tuple[bytes, bytes]]:
    """Yields brackets and commas outside of strings, each after the bytes since the last one.

    The mark is b"" where a chunk of the file ends.
    """
    is_string = is_escaped = False
    for chunk in _chunks(file):
        begin, at = 0, int(is_escaped)
        is_escaped = False
        while found := (_INSIDE_STRINGS if is_string else _OUTSIDE_STRINGS).search(chunk, at):
            at = found.end()
            if found[0] == b"\\":
                is_escaped = at == len(chunk)
                at += 1
            elif found[0] == b'"':
                is_string = not is_string
            else:
                yield chunk[begin : found.start()], found[0]
                begin = at
        yield chunk[begin:], b""


def _chunks(file: io.BufferedIOBase) -> Iterator[bytes]:
    """Yields what a file holds, without the byte order mark."""
    if start := file.read(len(codecs.BOM_UTF8)).removeprefix(codecs.BOM_UTF8):
        yield start
    while chunk := file.read(_CHUNK):
        yield chunk


class _Item:
    """Collects the bytes of an item; they are dropped once there are too many."""

    def __init__(self):
        self._raw, self._is_too_long = bytearray(), False

    def add(self, raw: bytes) -> None:
        self._is_too_long |= len(self._raw) + len(raw) > LONGEST_RECORD
        if self._is_too_long:
            self._raw.clear()
        else:
            self._raw += raw

    def take(self) -> bytes | None:
        raw = None if self._is_too_long else bytes(self._raw)
        self._raw, self._is_too_long = bytearray(), False
        return raw


def _check_outside(raw: bytes | None) -> None:
    if raw is None or not is_blank(raw):
        raise OSError("something lies beside its JSON array")


def _form(path: Path) -> str:
    """Says how the records of a file lie: "lines", "array" or "object"."""
    name = path.name.lower()
    name = name.removesuffix(compression(name) or "")
    if not name.endswith(".json"):
        return "lines"
    with open_stream(path) as (stream, _):
        start = next((c for c in _chunks(stream) if c.strip(BLANK)), b"")
    if start.lstrip(BLANK).startswith(b"["):
        return "array"
    with open_stream(path) as (stream, _):
        _, first = next(lines(stream), (0, None))
        if first is None or _is_object(first):
            return "lines"
        return "object" if _is_object(first + stream.read(LONGEST_RECORD)) else "lines"


def _is_object(raw: bytes) -> bool:
    try:
        return isinstance(parse_json(raw), dict)
    except Unusable:
        return False


def _object(file: io.BufferedIOBase) -> Iterator[tuple[int, bytes]]:
    yield 1, file.read()

"""Which files the text comes from, and how they are dealt out to workers."""

import dataclasses
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pyarrow
import pyarrow.parquet
from array_record.python.array_record_module import ArrayRecordReader

from hydrahead_jax.errors import UserError

Kind = Literal["text", "jsonl", "compressed_jsonl", "parquet", "text_records", "json_records"]
_KINDS: dict[str, Kind] = {
    ".txt": "text",
    ".md": "text",
    ".py": "text",
    ".jsonl": "jsonl",
    ".jsonl.gz": "compressed_jsonl",
    ".jsonl.zst": "compressed_jsonl",
    ".parquet": "parquet",
    ".arrayrecord": "text_records",
    ".array_record": "text_records",
}
_SAMPLE = 65536


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """`name` is the same wherever the sources lie."""

    path: Path
    name: str
    bytes: int
    kind: Kind

    def fingerprint(self) -> list:
        """Name, size, and the checksum of both ends; JSON."""
        with self.path.open("rb") as file:
            checksum = zlib.crc32(file.read(_SAMPLE))
            file.seek(max(0, self.bytes - _SAMPLE))
            return [self.name, self.bytes, zlib.crc32(file.read(_SAMPLE), checksum)]


@dataclasses.dataclass(frozen=True)
class Part:
    """A stretch of the sources that one worker reads from its start to its end.

    Attributes:
      paths: one file, or several of one document each.
      start: first byte, row group or record; the line that holds the byte belongs to the part
        that its first byte lies in.
      stop: after the last one.
      bytes: about as many, of the files.
    """

    kind: Kind
    paths: tuple[Path, ...]
    start: int
    stop: int
    bytes: int


def find_files(sources: tuple[Path, ...]) -> list[SourceFile]:
    """The files that are given or lie in the folders that are given, in a fixed order.

    Raises:
      UserError: one is missing or of an unknown kind, or there is none.
    """
    found = []
    for number, source in enumerate(sources):
        if source.is_file():
            paths = [source]
        elif source.is_dir():
            paths = sorted(p for p in source.rglob("*") if p.is_file() and _suffix(p))
        else:
            raise UserError(f"there is no file or folder {source}")
        for path in paths:
            suffix = _suffix(path)
            if suffix is None:
                raise UserError(f"{path} is none of {', '.join(_KINDS)}")
            relative = path.relative_to(source).as_posix() if source.is_dir() else path.name
            size = path.stat().st_size
            found.append(SourceFile(path, f"{number}/{relative}", size, _KINDS[suffix]))
    if not any(file.bytes for file in found):
        names = ", ".join(map(str, sources))
        raise UserError(f"there is no text in {names}; files must be {', '.join(_KINDS)}")
    return found


def _suffix(path: Path) -> str | None:
    return next((s for s in sorted(_KINDS, key=len)[::-1] if path.name.endswith(s)), None)


def make_parts(files: list[SourceFile], part_bytes: int, text_field: str) -> list[Part]:
    """Parts of about `part_bytes`; they follow from the files alone.

    Raises:
      UserError: a file is damaged, or a Parquet file has no text column.
    """
    parts, texts, texts_bytes = [], [], 0

    def close_texts() -> None:
        if texts:
            parts.append(Part("text", tuple(texts), 0, len(texts), texts_bytes))

    for file in files:
        if file.kind == "text":
            texts.append(file.path)
            texts_bytes += file.bytes
        if texts_bytes >= part_bytes or file.kind != "text":
            close_texts()
            texts, texts_bytes = [], 0
        if file.kind != "text" and file.bytes:
            parts += _parts_of(file, part_bytes, text_field)
    close_texts()
    return parts


def _parts_of(file: SourceFile, part_bytes: int, text_field: str) -> Iterator[Part]:
    if file.kind == "parquet":
        sizes, kind = _row_groups(file.path, text_field), file.kind
    elif file.kind == "text_records":
        records, kind = _records(file.path)
        sizes = [file.bytes / records] * records
    else:
        step = file.bytes if file.kind == "compressed_jsonl" else part_bytes
        for start in range(0, file.bytes, step):
            stop = min(start + step, file.bytes)
            yield Part(file.kind, (file.path,), start, stop, stop - start)
        return
    start, size = 0, 0
    for index, more in enumerate(sizes):
        size += more
        if size >= part_bytes or index + 1 == len(sizes):
            yield Part(kind, (file.path,), start, index + 1, round(size))
            start, size = index + 1, 0


def _row_groups(path: Path, text_field: str) -> list[int]:
    """Bytes of the text in each."""
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    with file:
        names = file.schema_arrow.names
        if text_field not in names:
            raise UserError(
                f"{path} has no column {text_field!r}; name one of {', '.join(names)} with "
                f"--text-field"
            )
        kind = file.schema_arrow.field(text_field).type
        if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
            raise UserError(f"{path}: the column {text_field!r} holds {kind}, not text")
        metadata = file.metadata
        column = next(
            i for i in range(metadata.num_columns) if metadata.schema.column(i).path == text_field
        )
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        return [group.column(column).total_uncompressed_size for group in groups]


def _records(path: Path) -> tuple[int, Kind]:
    """How many there are; they are JSON if the first one is an object."""
    try:
        reader = ArrayRecordReader(str(path))
        count = reader.num_records()
        first = reader.read([0])[0] if count else b""
        reader.close()
    except (RuntimeError, IndexError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    try:
        value = json.loads(first)
    except ValueError:
        value = None
    return count, "json_records" if isinstance(value, dict) else "text_records"

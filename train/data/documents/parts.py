"""Divides files into parts; one worker reads each part from its start to its end."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from hydrahead_jax.errors import UserError
from hydrahead_jax.text_files.names import shown
from hydrahead_jax.text_files.streams import compression
from train.data.documents.array_records import look_at
from train.data.documents.find import SourceFile
from train.data.documents.parquet import row_groups

Kind = Literal["text", "lines", "json", "parquet", "text_records", "json_records"]


@dataclasses.dataclass(frozen=True)
class Part:
    """Describes a stretch of the sources.

    Attributes:
      kind: "lines" are those of an uncompressed file, "json" is all of one that may be compressed.
      paths: one file, or several of one document each.
      start: first byte, row group or record. A line belongs to the part that its first byte lies
        in.
      stop: one more than the last byte, row group or record.
      bytes: approximate size in the files.
    """

    kind: Kind
    paths: tuple[Path, ...]
    start: int
    stop: int
    bytes: int


def make_parts(files: list[SourceFile], part_bytes: int, text_field: str) -> list[Part]:
    """Makes parts of about `part_bytes`; they depend on the files alone.

    Raises:
      UserError: a file is damaged, or a Parquet file has no text column.
    """
    parts, texts, texts_bytes = [], [], 0

    def close_texts() -> None:
        if texts:
            parts.append(Part("text", tuple(texts), 0, len(texts), texts_bytes))

    for file in files:
        if file.form == "text":
            texts.append(file.path)
            texts_bytes += file.bytes
        if texts_bytes >= part_bytes or file.form != "text":
            close_texts()
            texts, texts_bytes = [], 0
        if file.form != "text":
            parts += _parts_of(file, part_bytes, text_field)
    close_texts()
    return parts


def _parts_of(file: SourceFile, part_bytes: int, text_field: str) -> Iterator[Part]:
    if file.form in ("parquet", "records"):
        if not file.bytes:
            raise UserError(
                f"cannot read {shown(file.path)}: it is empty; copy the file again, or leave it out"
            )
        yield from _parts_of_units(file, part_bytes, text_field)
    elif file.form == "jsonl" and compression(file.path.name) is None:
        for start in range(0, file.bytes, part_bytes):
            stop = min(start + part_bytes, file.bytes)
            yield Part("lines", (file.path,), start, stop, stop - start)
    else:
        yield Part("json", (file.path,), 0, file.bytes, file.bytes)


def _parts_of_units(file: SourceFile, part_bytes: int, text_field: str) -> Iterator[Part]:
    if file.form == "parquet":
        sizes, kind = row_groups(file.path, text_field), "parquet"
    else:
        records, is_json = look_at(file.path)
        kind = "json_records" if is_json else "text_records"
        sizes = [file.bytes / records] * records
    start, size = 0, 0
    for index, more in enumerate(sizes):
        size += more
        if size >= part_bytes or index + 1 == len(sizes):
            yield Part(kind, (file.path,), start, index + 1, round(size))
            start, size = index + 1, 0

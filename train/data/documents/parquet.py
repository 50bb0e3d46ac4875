"""Reads a text column of Parquet files."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet

from hydrahead_jax.errors import UserError
from hydrahead_jax.text_files.names import shown

_AT_A_TIME = 64
_TEXT = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")


def row_groups(path: Path, column: str) -> list[int]:
    """Returns the bytes of the column in each row group.

    Raises:
      UserError: the file is damaged, or has no such column of text.
    """
    with _opened(path) as file:
        _check_column(path, file.schema_arrow, column)
        metadata = file.metadata
        index = next(
            i for i in range(metadata.num_columns) if metadata.schema.column(i).path == column
        )
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        return [group.column(index).total_uncompressed_size for group in groups]


def _check_column(path: Path, schema: pyarrow.Schema, column: str) -> None:
    names = schema.names
    if names.count(column) != 1:
        has = f"has {names.count(column) or 'no'} column{'s' * (column in names)} {column!r}"
        known = ", ".join(names)
        known = known if len(known) < 100 else known[:97] + "..."
        raise UserError(f"{shown(path)} {has}; set the text field to one of {known}")
    kind = schema.field(column).type
    values = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    if not any(getattr(pyarrow.types, f"is_{name}")(values) for name in _TEXT):
        held = str(kind) if len(str(kind)) < 60 else "a nested type"
        raise UserError(
            f"{shown(path)}: the column {column!r} holds {held}, not text; set the text field to "
            "a column of text"
        )


def rows(
    path: Path, column: str, start: int, stop: int
) -> Iterator[tuple[int, bytes | None, float]]:
    """Yields (number of the row from 1, its bytes or None for null, share of the rows read so far).

    The rows are those of row groups `start` to `stop`.

    Raises:
      UserError: the file is damaged.
    """
    with _opened(path) as file:
        number = before = sum(file.metadata.row_group(i).num_rows for i in range(start))
        groups = list(range(start, stop))
        total = sum(file.metadata.row_group(i).num_rows for i in groups)
        for batch in file.iter_batches(_AT_A_TIME, row_groups=groups, columns=[column]):
            for value in _as_bytes(batch.column(0)):
                number += 1
                yield number, value, (number - before) / total


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[pyarrow.parquet.ParquetFile]:
    try:
        with path.open("rb") as opened, pyarrow.parquet.ParquetFile(opened) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).strip().partition("\n")[0][:150]
        raise UserError(
            f"cannot read {shown(path)}: {reason}; copy the file again, or leave it out"
        ) from error


def _as_bytes(array: pyarrow.Array) -> list[bytes | None]:
    """Returns the values undecoded, so that values which are not UTF-8 can be found."""
    if isinstance(array, pyarrow.DictionaryArray):
        array = array.dictionary.take(array.indices)
    return array.cast(pyarrow.large_binary()).to_pylist()

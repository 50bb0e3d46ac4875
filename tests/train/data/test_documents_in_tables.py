"""Checks the reader of text in Parquet and ArrayRecord files."""

import pyarrow
import pyarrow.parquet
import pytest

from hydrahead_jax.errors import UserError
from tests.train.data.prepared_text import write_records
from tests.train.data.read_documents import MARK, line, read

TYPES = [
    pyarrow.string(),
    pyarrow.large_string(),
    pyarrow.string_view(),
    pyarrow.binary(),
    pyarrow.binary_view(),
    pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    pyarrow.dictionary(pyarrow.int8(), pyarrow.large_string()),
    pyarrow.dictionary(pyarrow.int32(), pyarrow.binary()),
]


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_types_of_parquet_columns(kind, tmp_path):
    values = ["a", None, "é", "a", "", "\ufeffb"]
    if pyarrow.types.is_dictionary(kind):
        array = pyarrow.array(values).dictionary_encode()
        words = array.dictionary.cast(kind.value_type)
        array = pyarrow.DictionaryArray.from_arrays(array.indices.cast(kind.index_type), words)
    else:
        array = pyarrow.array(values).cast(kind)
    table = pyarrow.table({"text": array})
    pyarrow.parquet.write_table(table, tmp_path / "a.PARQUET", row_group_size=2)
    for part_bytes in (1, 2**30):
        texts, counts = read(tmp_path / "a.PARQUET", part_bytes)
        assert texts == ["a", "é", "a", "b"] and counts.empty == 2 and counts.unusable == 0


def test_parquet_rows_that_are_no_text(tmp_path):
    values = pyarrow.array([b"a", b"caf\xe9", "b".encode("utf-16-le"), b"c"], pyarrow.binary())
    pyarrow.parquet.write_table(
        pyarrow.table({"text": values}), tmp_path / "a.parquet", row_group_size=1
    )
    texts, counts = read(tmp_path / "a.parquet", 1)
    assert texts == ["a", "c"]
    assert counts.examples[0] == f"{tmp_path}/a.parquet, row 2 is not UTF-8"
    assert counts.examples[1].startswith(f"{tmp_path}/a.parquet, row 3 holds NUL characters")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"text": [["a"]]}, "the column 'text' holds list<.*>, not text"),
        ({"text": [{"a": "b" * 99}]}, "the column 'text' holds struct<.*>, not text"),
        ({"text": [None]}, "the column 'text' holds null, not text"),
        (
            {"meta": [{"text": "a"}], "body": ["b"]},
            "has no column 'text'; set the text field to one of meta, body",
        ),
    ],
)
def test_parquet_columns_that_are_no_text(table, message, tmp_path):
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=f"{tmp_path}/a.parquet:? {message}"):
        read(tmp_path / "a.parquet")


def test_parquet_columns_of_one_name(tmp_path):
    table = pyarrow.table([["a"], ["b"]], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet has 2 columns 'text'"):
        read(tmp_path / "a.parquet")


def test_array_records(tmp_path):
    write_records(tmp_path / "a.arrayrecord", MARK + b"a", b"caf\xe9", b"", "b".encode("utf-16-be"))
    write_records(tmp_path / "b.array_record", MARK + line("a"), b"[1]", b'{"text": null}', b"\xff")
    texts, counts = read(tmp_path)
    assert texts == ["a", "a"] and counts.empty == 2 and counts.unusable == 4
    assert counts.examples[0] == f"{tmp_path}/a.arrayrecord, record 2 is not UTF-8"
    for raw in (b"", b"no records"):
        (tmp_path / "b.array_record").write_bytes(raw)
        with pytest.raises(UserError, match=r"cannot read .*array_record"):
            read(tmp_path)

"""Checks the reader of text: every kind of file gives the same documents, by the same rules."""

import bz2
import gzip
import lzma
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from hydrahead_jax.errors import UserError
from hydrahead_jax.text_files import records
from tests.train.data.read_documents import MARK, line, read
from train.data.documents.find import find_files
from train.data.documents.parts import make_parts
from train.data.documents.read import read_part

COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda raw: pyarrow.compress(raw, codec="zstd", asbytes=True),
}
LONG_WINDOW = b"\x28\xb5\x2f\xfd\x00\x90" + b"\x00" * 10


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize(
    ("name", "raw", "wanted"),
    [
        ("a.txt", MARK + "é\r\n\u2028x\n".encode(), ["é\r\n\u2028x\n"]),
        ("a.TXT", b"BZh is no compressed file", ["BZh is no compressed file"]),
        ("a.jsonl", MARK + line("é\u2028\x85\x1c") + b"\r\n" + line("b"), ["é\u2028\x85\x1c", "b"]),
        ("a.jsonl", line("a") + MARK + line("\ufeffb"), ["a", "b"]),
        ("a.jsonl", b'{"text": "a", "n": ' + b"1" * 5000 + b', "x": NaN}', ["a"]),
        ("a.jsonl", b'{"text": "a", "text": "b"}\r\n', ["b"]),
        ("a.json", line("a") + b"\n" + line("b"), ["a", "b"]),
        (
            "a.Json",
            MARK + b' [\n{"text": "a]}\\\\\\","},{"text":"b", "x":[1,{}]}\n]\n',
            ['a]}\\",', "b"],
        ),
        ("a.json", b'{\n  "text": "a",\n  "x": [1,\n 2]\n}\n', ["a"]),
        ("a.json", b'[{"text": "a"}]\n[{"text": "b"}]', ["a", "b"]),
        ("a.json", b"[]", []),
        ("a.jsonl", b"\n \r\n\t\n", []),
    ],
)
def test_files_and_their_text(ending, name, raw, wanted, tmp_path):
    path = tmp_path / (name + ending.upper() if name.isupper() else name + ending)
    path.write_bytes(COMPRESS[ending](raw))
    texts, counts = read(path)
    assert texts == wanted and counts.read == counts.written


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize(
    ("name", "raw", "reason"),
    [
        ("a.txt", "café".encode("latin-1"), "a.txt is not UTF-8"),
        ("a.txt", "words".encode("utf-16"), "a.txt is not UTF-8"),
        ("a.txt", "words".encode("utf-16-le"), "a.txt holds NUL characters"),
        ("a.txt", "words".encode("utf-32-be"), "a.txt holds NUL characters"),
        ("a.txt", b"\xed\xa0\xbd", "a.txt is not UTF-8"),
        ("a.jsonl", line("é").decode().encode("latin-1"), "a.jsonl, line 2 is not UTF-8"),
        ("a.jsonl", b'{"text": 3}', 'a.jsonl, line 2 holds a "text" that is not text'),
        ("a.jsonl", b'{"text": NaN}', 'a.jsonl, line 2 holds a "text" that is not text'),
        ("a.jsonl", b'{"text": {"text": "a"}}', 'a.jsonl, line 2 holds a "text" that is not'),
        ("a.jsonl", b'{"text": ' + b"1" * 5000 + b"}", 'a.jsonl, line 2 holds a "text" that is'),
        ("a.jsonl", b'{"txt": "a"}', 'a.jsonl, line 2 holds no JSON object with a "text"'),
        ("a.jsonl", b'["text"]', 'a.jsonl, line 2 holds no JSON object with a "text"'),
        ("a.jsonl", b"null", 'a.jsonl, line 2 holds no JSON object with a "text"'),
        ("a.jsonl", b'{"text": "a\x0bb"}', 'a.jsonl, line 2 holds no JSON object with a "text"'),
        ("a.jsonl", b'{"text": "a\\u0000b"}', "a.jsonl, line 2 holds NUL characters"),
        ("a.jsonl", b'{"text": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", "a.jsonl, line 2 is nested"),
    ],
)
def test_records_that_are_no_text(ending, name, raw, reason, tmp_path):
    """They are counted and named, and the others are read."""
    (tmp_path / (name + ending)).write_bytes(
        COMPRESS[ending](raw if name == "a.txt" else line("good") + raw + b"\n" + line("good"))
    )
    (tmp_path / "b.txt").write_text("good")
    texts, counts = read(tmp_path)
    assert texts == ["good"] * (1 if name == "a.txt" else 3) and counts.unusable == 1
    [example] = counts.examples
    assert example.replace(ending, "").startswith(f"{tmp_path}/{reason}")
    assert sum(counts.reasons.values()) == 1


def test_items_that_are_no_text(tmp_path):
    items = [b'{"text": "a"}', b"null", b"", b'{"text": "\xe9"}', b'"x"', b'{"text": null}']
    items += [b'{"text": "b]}"}', b"[" * 10**5 + b"]" * 10**5]
    (tmp_path / "a.json").write_bytes(b"[" + b",\n".join(items) + b"]")
    texts, counts = read(tmp_path / "a.json")
    assert texts == ["a", "b]}"] and counts.empty == 1 and counts.unusable == 5
    assert [example.split(", ")[1].split()[1] for example in counts.examples] == list("23458")


def test_arrays_are_cut_at_any_byte(tmp_path, monkeypatch):
    raw = MARK + b' [ {"text": "\\\\\\"],"} , {"text":"b","c":[[],{"d":"\\\\"}]} ]\n '
    (tmp_path / "a.json").write_bytes(raw)
    for size in range(1, 12):
        monkeypatch.setattr(records, "_CHUNK", size)
        assert read(tmp_path / "a.json")[0] == ['\\"],', "b"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'[{"text": "a"}', "its JSON array does not end"),
        (b'[{"text": "a"}] {"text": "b"}', "something lies beside its JSON array"),
        (b'[{"text": "a"}] x', "something lies beside its JSON array"),
        (b'[{"text": "a"}}', "its JSON array ends with }"),
    ],
)
def test_damaged_arrays(raw, message, tmp_path):
    (tmp_path / "a.json").write_bytes(raw)
    with pytest.raises(UserError, match=f"cannot read {tmp_path}/a.json: {message}"):
        read(tmp_path / "a.json")


def test_long_records(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "LONGEST_RECORD", 64)
    (tmp_path / "a.json").write_bytes(b"[" + line("a" * 100) + b"," + line("b") + b"]")
    (tmp_path / "b.jsonl").write_bytes(line("a" * 100) + line("b"))
    texts, counts = read(tmp_path)
    assert texts == ["b", "b"]
    assert [e.split(" has ")[0].split(", ")[1] for e in counts.examples] == ["item 1", "line 1"]


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst"])
def test_compressed_files(ending, tmp_path):
    """Files of several members are read.

    A file that is cut off, followed by something else, or not compressed is named.
    """
    path = tmp_path / f"a.jsonl{ending}"
    whole = COMPRESS[ending](line("one")) + COMPRESS[ending](MARK + line("two" * 10**6))
    path.write_bytes(whole)
    assert read(path)[0] == ["one", "two" * 10**6]
    for raw in (whole[:-3], whole[:-40], whole + b"else", line("plain"), b""):
        path.write_bytes(raw)
        with pytest.raises(UserError, match=f"cannot read {path}: "):
            list(make_and_read(path))
    plain = tmp_path / "b.jsonl"
    plain.write_bytes(whole)
    with pytest.raises(UserError, match=f"b.jsonl: it is compressed; let its name end in {ending}"):
        read(plain)


def make_and_read(path: Path):
    """Reads a file even if it is empty."""
    (path.parent / "z.txt").write_text("z")
    for part in make_parts(find_files((path.parent,)).files, 2**30, "text"):
        yield from read_part(part, "text")


def test_a_long_zstd_window(tmp_path):
    (tmp_path / "a.jsonl.zst").write_bytes(LONG_WINDOW)
    with pytest.raises(UserError, match=r"its zstd window is above 128 MiB; compress it again"):
        read(tmp_path / "a.jsonl.zst")


def test_halves_of_surrogate_pairs(tmp_path):
    raw = b'{"text": "x \\ud83d y"}\n{"text": "\\ud83d\\ude00"}\n{"text": "\\udc00"}'
    (tmp_path / "a.jsonl").write_bytes(raw)
    texts, counts = read(tmp_path / "a.jsonl")
    assert texts == ["x ? y", "\U0001f600", "?"] and counts.mended == 2


def test_lines_belong_to_one_part(tmp_path):
    """This holds wherever parts begin, even for lines that start with a mark."""
    (tmp_path / "a.jsonl").write_bytes(b"".join(MARK + line("é" * i) for i in range(1, 9)))
    for part_bytes in range(1, 60):
        texts, _ = read(tmp_path / "a.jsonl", part_bytes)
        assert texts == ["é" * i for i in range(1, 9)]

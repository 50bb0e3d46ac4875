"""Checks that `prepare` notices changed sources, and says what it left out."""

import functools
import itertools
import json
import os
import shutil
from pathlib import Path

import pytest

from hydrahead_jax.errors import UserError
from hydrahead_jax.json_file import read_json, write_json
from tests.train.data import prepared_text
from train.data.documents.read import read_part
from train.data.prepared.folder import MANIFEST, PreparedFolder

run = functools.partial(prepared_text.run, shard_tokens=2**25)
CHANGED = r"out was begun differently: the source text\.jsonl has changed; choose another --out"


@pytest.fixture
def source(tmp_path) -> Path:
    """Makes a folder with one file of more than 256 KiB."""
    (tmp_path / "source").mkdir()
    prepared_text.write_jsonl(tmp_path / "source" / "text.jsonl", prepared_text.texts(4000))
    assert (tmp_path / "source" / "text.jsonl").stat().st_size > 2**18
    return tmp_path / "source"


def edit(source: Path) -> None:
    """Changes one byte in the middle; size and times stay."""
    path = source / "text.jsonl"
    times, raw = path.stat(), bytearray(path.read_bytes())
    at = raw.index(b"def", len(raw) // 2)
    raw[at] = ord("x")
    path.write_bytes(raw)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def stop_in_the_middle(monkeypatch) -> None:
    """Makes the next command fail after 3000 documents."""
    numbers = itertools.count()

    def stop(part, text_field):
        for document in read_part(part, text_field):
            if next(numbers) == 3000:
                raise UserError("stopped")
            yield document

    monkeypatch.setattr("train.prepare.shards.read_part", stop)


def test_a_change_after_the_folder_was_finished(source, tokenizer, tmp_path):
    run(source, tokenizer, tmp_path / "out")
    edit(source)
    with pytest.raises(UserError, match=CHANGED):
        run(source, tokenizer, tmp_path / "out")


def test_a_change_after_an_interruption(source, tokenizer, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_in_the_middle(patch)
        with pytest.raises(UserError, match="stopped"):
            run(source, tokenizer, tmp_path / "out", shard_tokens=5000)
    edit(source)
    with pytest.raises(UserError, match=CHANGED):
        run(source, tokenizer, tmp_path / "out", shard_tokens=5000)


def test_sources_that_moved_are_the_same(source, tokenizer, tmp_path, monkeypatch):
    """Sources may be elsewhere, copied, touched, or reached by a link.

    Finished folders stay finished, and others continue.
    """
    run(source, tokenizer, tmp_path / "whole", shard_tokens=5000)
    with monkeypatch.context() as patch:
        stop_in_the_middle(patch)
        with pytest.raises(UserError, match="stopped"):
            run(source, tokenizer, tmp_path / "out", shard_tokens=5000)
    shutil.copytree(source, tmp_path / "copy")
    shutil.rmtree(source)
    os.utime(tmp_path / "copy" / "text.jsonl", (1, 1))
    (tmp_path / "link").symlink_to(tmp_path / "copy")
    run(tmp_path / "link", tokenizer, tmp_path / "out", shard_tokens=5000, workers=2)
    said = []
    run(tmp_path / "copy", tokenizer, tmp_path / "out", shard_tokens=5000, say=said.append)
    assert said == [f"{tmp_path / 'out'} is finished; nothing to do"]
    out, whole = (prepared_text.bytes_of(tmp_path / name) for name in ("out", "whole"))
    assert out == whole


def test_a_source_that_changes_while_it_is_read(source, tokenizer, tmp_path, monkeypatch):
    def change(part, text_field):
        for number, document in enumerate(read_part(part, text_field)):
            if number == 3000:
                edit(source)
            yield document

    monkeypatch.setattr("train.prepare.shards.read_part", change)
    with pytest.raises(UserError, match=r"text\.jsonl changed while it was read; delete .*out and"):
        run(source, tokenizer, tmp_path / "out")
    monkeypatch.setattr("train.prepare.shards.read_part", read_part)
    with pytest.raises(UserError, match="out exists and holds no prepared text"):
        run(source, tokenizer, tmp_path / "out")


def test_files_that_come_and_go(source, tokenizer, tmp_path):
    run(source, tokenizer, tmp_path / "out")
    (source / "notes.bin").write_bytes(b"\0")
    run(source, tokenizer, tmp_path / "out")
    (source / "a.txt").write_text("more")
    with pytest.raises(UserError, match="begun with 1 source files, now there are 2"):
        run(source, tokenizer, tmp_path / "out")
    (source / "text.jsonl").unlink()
    with pytest.raises(UserError, match=r"the source a\.txt was text\.jsonl; choose another"):
        run(source, tokenizer, tmp_path / "out")


def test_folders_of_an_older_version(source, tokenizer, tmp_path):
    """Finished folders are read.

    The command cannot tell whether their sources changed, and says so.
    """
    manifest = run(source, tokenizer, tmp_path / "out")
    asked = read_json(tmp_path / "out" / "prepare.json")
    del asked["rules"]
    asked["sources"] = [[name, size, 12345] for name, size, _ in asked["sources"]]
    write_json(tmp_path / "out" / "prepare.json", asked)
    for name in ("unusable", "halves_of_surrogate_pairs_replaced", "not_read"):
        del manifest[name]
    write_json(tmp_path / "out" / MANIFEST, manifest)
    assert len(prepared_text.documents_of(PreparedFolder(tmp_path / "out"))) == 4000
    message = "out was made by another version.*; choose another --out, or train on it unchanged"
    with pytest.raises(UserError, match=message):
        run(source, tokenizer, tmp_path / "out")


def test_workers_change_neither_result_nor_account(source, tokenizer, tmp_path):
    """What was left out is said and written, whichever worker left it out."""
    path = source / "text.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for number in range(100, 4000, 100):
        lines[number] = b'{"text": "\xe9"}\n'
    lines[50] = b'{"text": null}\n'
    lines[3999] = b'{"text": "\\udc00"}\n'
    path.write_bytes(b"".join(lines))
    (source / "notes.bin").write_bytes(b"\0")
    for workers in (1, 2):
        _run_with_bad_lines(workers, path, tokenizer, tmp_path / str(workers))
    one, two = (prepared_text.bytes_of(tmp_path / name) for name in ("1", "2"))
    assert one == two and len(one) > 5


def _run_with_bad_lines(workers: int, path: Path, tokenizer: Path, out: Path) -> None:
    said = []
    options = {"workers": workers, "shard_tokens": 5000, "skip_bad": True, "say": said.append}
    manifest = run(path.parent, tokenizer, out, **options)
    first = f"{path}, line 101 is not UTF-8"
    assert said[0] == "not read: 1 with other endings (notes.bin)"
    assert said[-1].endswith(
        f"; left out: 1 empty, 39 unusable ({first}); halves of surrogate pairs became ? in 1"
    )
    assert manifest["left_out"] == {"empty": 1, "other_split": 0, "unusable": 39}
    assert manifest["unusable"]["reasons"] == {"is not UTF-8": 39}
    assert manifest["unusable"]["examples"] == [
        f"{path}, line {number} is not UTF-8" for number in range(101, 1100, 100)
    ]
    assert manifest["halves_of_surrogate_pairs_replaced"] == 1
    assert manifest["not_read"] == {"count": 1, "files": [["notes.bin", "with other endings"]]}
    assert json.loads((out / MANIFEST).read_text()) == manifest

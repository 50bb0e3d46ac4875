"""Checks the results of `prepare` for every kind of source, however it was interrupted."""

import gzip
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from hydrahead_jax.errors import UserError
from hydrahead_jax.json_file import read_json
from tests.root import ROOT
from tests.train.data import prepared_text
from tests.train.data.prepared_text import SHARD_TOKENS, run
from train.__main__ import main
from train.data.batches import make_batches
from train.data.documents import read
from train.data.documents.find import find_files
from train.data.documents.parts import make_parts
from train.data.prepared.folder import MANIFEST, PreparedFolder
from train.data.text import Corpus
from train.data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from train.prepare.job import WORK


def write_source(kind: str, folder: Path, documents: list[str]) -> Path:
    path = folder / f"source.{kind}"
    if kind == "txt":
        path.mkdir()
        for number, text in enumerate(documents):
            (path / f"{number:03d}.txt").write_text(text)
    elif kind == "parquet":
        table = pyarrow.table({"id": range(len(documents)), "text": documents})
        pyarrow.parquet.write_table(table, path, row_group_size=7)
    elif kind == "arrayrecord":
        prepared_text.write_records(path, *(text.encode() for text in documents))
    else:
        lines = prepared_text.write_jsonl(folder / "lines", documents).read_bytes()
        if kind == "json.arrayrecord":
            prepared_text.write_records(path, *lines.splitlines())
        else:
            zstandard = lambda data: pyarrow.compress(data, codec="zstd", asbytes=True)
            compress = {"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.zst": zstandard}[kind]
            path.write_bytes(compress(lines))
    return path


KINDS = ("txt", "jsonl", "jsonl.gz", "jsonl.zst", "parquet", "arrayrecord", "json.arrayrecord")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source(kind, tmp_path, tokenizer):
    documents = prepared_text.texts()
    source = write_source(kind, tmp_path, documents)
    manifest = run(source, tokenizer, tmp_path / "out")
    folder = PreparedFolder(tmp_path / "out")
    found, wanted = prepared_text.documents_of(folder), prepared_text.encoded(documents)
    assert found == wanted
    assert manifest["tokens"] == sum(map(len, wanted)) and manifest["documents"] == len(wanted)
    assert manifest["dtype"] == "<u2" and len(manifest["shards"]) > 2
    assert all(shard["tokens"] < 3 * SHARD_TOKENS for shard in manifest["shards"])


def test_documents_longer_than_a_record(tmp_path):
    documents = ["short", "é" * 30_000, "x", "y" * 8191, "z" * 8192]
    folder = prepared_text.prepared(tmp_path / "long", documents)
    assert prepared_text.documents_of(folder) == prepared_text.encoded(documents)
    assert folder.stretch(0, folder.manifest["tokens"])["length"].sum() == folder.lengths().sum()


def test_parts_depend_on_the_files_alone(tmp_path):
    """Files are cut into as many parts as the size says, and no line is cut."""
    documents = prepared_text.texts(200)
    path = prepared_text.write_jsonl(tmp_path / "a.jsonl", documents)
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "c.md").write_text("c")
    parts = make_parts(find_files((tmp_path,)).files, 4000, "text")
    assert len(parts) == -(-path.stat().st_size // 4000) + 1 and parts[-1].stop == 2
    found = [d.text for part in parts for d in read.read_part(part, "text")]
    assert found == [*documents, "b", "c"]


def test_workers_do_not_change_the_result(tmp_path, tokenizer):
    source = prepared_text.write_jsonl(tmp_path / "text.jsonl", prepared_text.texts(200))
    for workers in (1, 2):
        run(source, tokenizer, tmp_path / str(workers), workers=workers)
    one, two = (prepared_text.bytes_of(tmp_path / name) for name in ("1", "2"))
    assert one == two and len(one) > 5


def test_killed_and_continued(tmp_path, tokenizer):
    """SIGKILL, sent when some shards exist, also ends the workers; the rest is made later."""
    source = prepared_text.write_jsonl(tmp_path / "text.jsonl", prepared_text.texts(3000))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "train", "prepare", source, "--tokenizer", tokenizer]
    command += ["--out", out, "--workers", "2", "--shard-tokens", str(SHARD_TOKENS)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        while len(made := list((out / WORK).glob("shard*.json"))) < 5 and process.poll() is None:
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    wait_for_group(process.pid)
    assert made and not (out / MANIFEST).is_file()
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.arrayrecord")}
    run(source, tokenizer, out)
    run(source, tokenizer, tmp_path / "whole")
    assert prepared_text.bytes_of(out) == prepared_text.bytes_of(tmp_path / "whole")
    kept = [path for path, made_at in times.items() if path.stat().st_mtime_ns == made_at]
    assert len(kept) >= 5


def wait_for_group(group: int) -> None:
    """Waits until every process of the group is gone."""
    for _ in range(1000):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    os.killpg(group, signal.SIGKILL)
    raise AssertionError("a worker outlived the process that began it")


@pytest.mark.parametrize("stop_after", [1, 100, 399])
def test_stopped_inside_a_part(stop_after, tmp_path, tokenizer, monkeypatch):
    """A part of several shards continues after the last complete one."""
    documents = prepared_text.texts(400)
    source = write_source("jsonl.gz", tmp_path, documents)

    def stop(part, text_field):
        for number, document in enumerate(read_part(part, text_field)):
            if number == stop_after:
                raise UserError("stopped")
            yield document

    read_part = read.read_part
    monkeypatch.setattr("train.prepare.shards.read_part", stop)
    monkeypatch.setattr("train.prepare.tokenise._DOCUMENTS_AT_ONCE", 10)
    with pytest.raises(UserError, match="stopped"):
        run(source, tokenizer, tmp_path / "out")
    monkeypatch.setattr("train.prepare.shards.read_part", read_part)
    run(source, tokenizer, tmp_path / "out")
    assert prepared_text.documents_of(PreparedFolder(tmp_path / "out")) == prepared_text.encoded(
        documents
    )
    run(source, tokenizer, tmp_path / "whole")
    assert prepared_text.bytes_of(tmp_path / "out") == prepared_text.bytes_of(tmp_path / "whole")


def test_held_out_documents(tmp_path, tokenizer):
    documents = prepared_text.texts(300)
    source = prepared_text.write_jsonl(tmp_path / "text.jsonl", documents)
    found = {}
    for split in ("train", "held_out"):
        manifest = run(source, tokenizer, tmp_path / split, held_out=0.2, split=split)
        found[split] = prepared_text.documents_of(PreparedFolder(tmp_path / split))
        assert manifest["left_out"]["other_split"] == 300 - manifest["documents"]
    assert 30 < len(found["held_out"]) < 90
    assert sorted(found["train"] + found["held_out"]) == sorted(prepared_text.encoded(documents))


def test_records_without_text(tmp_path, tokenizer, monkeypatch):
    """Such records stop the work, naming the line, or are counted; empty documents are counted."""
    documents = prepared_text.texts(60)
    source = prepared_text.write_jsonl(tmp_path / "text.jsonl", documents)
    lines = source.read_text().splitlines()
    lines[50:50] = ['{"text": ', "", '{"text": " \\n"}', '{"text": 3}', '{"other": ""}', "[1]"]
    lines += ['{"text": null}', '{"text": "' + "long" * 500 + '"}', '{"text": "half \\ud83d"}']
    source.write_text("\n".join(lines))
    monkeypatch.setattr(read, "LONGEST_TEXT", 1900)
    with pytest.raises(UserError, match=r"text\.jsonl, line 51 holds no JSON object.*--skip-bad"):
        run(source, tokenizer, tmp_path / "out")
    manifest = run(source, tokenizer, tmp_path / "out", skip_bad=True)
    assert manifest["left_out"] == {"empty": 2, "other_split": 0, "unusable": 5}
    found = prepared_text.documents_of(PreparedFolder(tmp_path / "out"))
    assert found == prepared_text.encoded([*documents, "half ?"])


def test_command(tmp_path, tokenizer, capsys):
    source = prepared_text.write_jsonl(tmp_path / "text.jsonl", prepared_text.texts(20))
    command = ["prepare", str(source), "--tokenizer", str(tokenizer / "tokenizer.json")]
    command += ["--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(command) == 0
    assert "holds 20 documents" in capsys.readouterr().out
    assert main(command) == 0
    assert "is finished; nothing to do" in capsys.readouterr().out
    assert main([*command, "--text-field", "id"]) == 1
    assert "text_field is 'text' there and 'id' here" in capsys.readouterr().err
    [shard] = (tmp_path / "out").glob("*.arrayrecord")
    shard.write_bytes(b"")
    assert main(command) == 1
    assert "missing or damaged; delete the folder" in capsys.readouterr().err


def test_the_page_on_data(tmp_path, monkeypatch):
    """The page's commands run, and its config reads what they make."""
    page = (ROOT / "docs" / "data.md").read_text()
    commands = re.findall(r"^python -m train (prepare .*)$", page, re.MULTILINE)
    assert len(commands) == 3
    monkeypatch.chdir(ROOT)
    for command in commands:
        words = [f"{tmp_path}/{w}" if w.startswith("data/") else w for w in command.split()]
        assert main([*words, "--workers", "1"]) == 0
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL).group(1), names)
    corpus = Corpus(load_tokenizer(ROOT / "configs" / "assets" / "tiny_teacher" / "tokenizer.json"))
    batch = next(make_batches(names["data"], corpus, 0))
    assert batch.tokens_BT.shape == (8, 512) and batch.segment_ids_BT.max() >= 1


def test_another_job_in_the_folder(tmp_path, tokenizer):
    source = prepared_text.write_jsonl(tmp_path / "text.jsonl", prepared_text.texts(20))
    out = tmp_path / "out"
    run(source, tokenizer, out)
    other = train_tokenizer(["other"], vocab=prepared_text.VOCAB + 1, keys=8, values=9)
    save_tokenizer(other, tmp_path / "other", 64)
    with pytest.raises(UserError, match="begun with another tokenizer"):
        run(source, tmp_path / "other", out)
    with pytest.raises(UserError, match="shard_tokens is 600 there and 100 here"):
        run(source, tokenizer, out, shard_tokens=100)
    prepared_text.write_jsonl(source, prepared_text.texts(20, seed=1))
    with pytest.raises(UserError, match=r"begun differently: the source text\.jsonl has changed"):
        run(source, tokenizer, out)
    (tmp_path / "more").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "more" / name).write_text(name)
    with pytest.raises(UserError, match="begun with 1 source files, now there are 2"):
        run(tmp_path / "more", tokenizer, out)
    with pytest.raises(UserError, match="holds no prepared text"):
        run(source, tokenizer, tmp_path / "more")


def test_no_space_left(tmp_path, tokenizer):
    """The limit on the size of files stands for a full disk; the work is then continued."""
    source = prepared_text.write_jsonl(tmp_path / "text.jsonl", prepared_text.texts(200))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2500, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write to .*out: .*File too large"):
            run(source, tokenizer, tmp_path / "out", shard_tokens=10**6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert run(source, tokenizer, tmp_path / "out", shard_tokens=10**6)["documents"] == 200


def test_damaged_sources(tmp_path, tokenizer):
    documents = prepared_text.texts(200)
    for kind, message in (("jsonl.gz", "cannot read"), ("parquet", "cannot read")):
        source = write_source(kind, tmp_path, documents)
        source.write_bytes(source.read_bytes()[:-200])
        with pytest.raises(UserError, match=f"{message} .*{kind}"):
            run(source, tokenizer, tmp_path / f"out {kind}")
    numbers = tmp_path / "numbers.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2]}), numbers)
    with pytest.raises(UserError, match="the column 'text' holds int64, not text"):
        run(numbers, tokenizer, tmp_path / "out")
    with pytest.raises(UserError, match=r"has no column 'body'; set the text field to one of text"):
        run(numbers, tokenizer, tmp_path / "out", text_field="body")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workers": 0}, "--workers and --shard-tokens must be 1 or more"),
        ({"held_out": 1.0}, "--held-out 1.0 must be a share"),
        ({"split": "held_out"}, "--split held_out needs --held-out"),
        ({"source": "missing"}, "there is no file or folder"),
        ({"source": "data.bin"}, "data.bin must end in .txt"),
        ({"source": "empty"}, "there is no text in"),
        ({"tokenizer": "missing"}, "there is no tokenizer"),
        ({"tokenizer": "data.bin"}, "is not a tokenizer: "),
        ({"out": "empty/out"}, "lies in the source"),
        ({"out": "data.bin/out"}, "cannot be written"),
    ],
)
def test_bad_input(change, message, tmp_path, tokenizer):
    (tmp_path / "data.bin").write_bytes(b"\x00")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("a")
    source = "empty" if change.get("out") == "empty/out" else "a.txt"
    arguments = {"source": source, "tokenizer": tokenizer, "out": "out"} | change
    paths = {name: tmp_path / arguments.pop(name) for name in ("source", "tokenizer", "out")}
    with pytest.raises(UserError, match=message):
        run(**paths, **arguments)


def test_manifest_says_what_was_done(tmp_path, tokenizer):
    source = prepared_text.write_jsonl(tmp_path / "text.jsonl", prepared_text.texts(20))
    manifest = run(source, tokenizer, tmp_path / "out")
    assert read_json(tmp_path / "out" / MANIFEST) == manifest
    assert manifest["asked"]["text_field"] == "text" and "grain" in manifest["versions"]
    assert np.load(tmp_path / "out" / "lengths.npy").sum() == manifest["tokens"]
    other = prepared_text.prepared(tmp_path / "other", prepared_text.texts(20, seed=1))
    assert other.checksum != manifest["checksum"]

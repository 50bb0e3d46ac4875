"""Checks the results of `prepare` for every kind of source."""

import re

import numpy as np
import pytest

from hydrahead_jax.json_file import read_json
from tests.root import ROOT
from tests.train.data import prepared_text
from tests.train.data.prepared_text import SHARD_TOKENS, run, write_source
from train.__main__ import main
from train.data.batches import make_batches
from train.data.documents import read
from train.data.documents.find import find_files
from train.data.documents.parts import make_parts
from train.data.prepared.folder import MANIFEST, PreparedFolder
from train.data.text import Corpus
from train.data.tokenizer import load_tokenizer

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


def test_manifest_says_what_was_done(tmp_path, tokenizer):
    source = prepared_text.write_jsonl(tmp_path / "text.jsonl", prepared_text.texts(20))
    manifest = run(source, tokenizer, tmp_path / "out")
    assert read_json(tmp_path / "out" / MANIFEST) == manifest
    assert manifest["asked"]["text_field"] == "text" and "grain" in manifest["versions"]
    assert np.load(tmp_path / "out" / "lengths.npy").sum() == manifest["tokens"]
    other = prepared_text.prepared(tmp_path / "other", prepared_text.texts(20, seed=1))
    assert other.checksum != manifest["checksum"]

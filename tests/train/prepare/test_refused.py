"""Checks what `prepare` refuses: bad arguments and sources, and a folder of another job."""

import pyarrow
import pyarrow.parquet
import pytest

from hydrahead_jax.errors import UserError
from tests.train.data import prepared_text
from tests.train.data.prepared_text import run, write_source
from train.data.documents import read
from train.data.prepared.folder import PreparedFolder
from train.data.tokenizer import save_tokenizer, train_tokenizer


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

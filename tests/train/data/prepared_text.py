"""Makes small prepared text, and documents to compare it with."""

import functools
import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from array_record.python.array_record_module import ArrayRecordWriter
from tokenizers import Tokenizer

from train.data.batches import DataConfig
from train.data.prepared.folder import PreparedFolder, PreparedText, document_pieces
from train.data.tokenizer import save_tokenizer, train_tokenizer
from train.prepare.command import prepare

VOCAB = 300
SHARD_TOKENS = 600
LENGTH, BATCH = 64, 6


@functools.cache
def tokenizer() -> Tokenizer:
    return train_tokenizer(["def f(x): return x + 1\n"], vocab=VOCAB, keys=8, values=8)


def texts(count: int = 60, seed: int = 0) -> list[str]:
    """Returns different texts of 4 to about 120 characters, most of them short."""
    rng = np.random.default_rng(seed)
    return [
        f"{seed} {i} " + f"def f{seed}(x, é):\n" * int(10 * rng.random() ** 2) for i in range(count)
    ]


def write_jsonl(path: Path, documents: list[str]) -> Path:
    lines = [json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(documents)]
    path.write_text("".join(lines))
    return path


def write_tokenizer(folder: Path) -> Path:
    save_tokenizer(tokenizer(), folder, 64)
    return folder


def write_records(path: Path, *records: bytes) -> Path:
    """Writes an ArrayRecord file."""
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    return path


def write_source(kind: str, folder: Path, documents: list[str]) -> Path:
    """Writes the documents as a source of a kind, such as "jsonl.gz", and returns its path."""
    path = folder / f"source.{kind}"
    if kind == "txt":
        path.mkdir()
        for number, text in enumerate(documents):
            (path / f"{number:03d}.txt").write_text(text)
    elif kind == "parquet":
        table = pyarrow.table({"id": range(len(documents)), "text": documents})
        pyarrow.parquet.write_table(table, path, row_group_size=7)
    elif kind == "arrayrecord":
        write_records(path, *(text.encode() for text in documents))
    else:
        lines = write_jsonl(folder / "lines", documents).read_bytes()
        if kind == "json.arrayrecord":
            write_records(path, *lines.splitlines())
        else:
            zstandard = lambda data: pyarrow.compress(data, codec="zstd", asbytes=True)
            compress = {"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.zst": zstandard}[kind]
            path.write_bytes(compress(lines))
    return path


def run(source: Path, tokenizer: Path, out: Path, **options) -> dict:
    """Prepares a source quietly, in this process, and returns the manifest."""
    options = {"workers": 1, "shard_tokens": SHARD_TOKENS, "say": lambda sentence: None} | options
    return prepare((source,), tokenizer, out, **options)


def prepared(folder: Path, documents: list[str], **options) -> PreparedFolder:
    """Prepares those documents in `folder`."""
    folder.mkdir()
    source = write_jsonl(folder / "text.jsonl", documents)
    run(source, write_tokenizer(folder / "tokenizer"), folder / "out", **options)
    return PreparedFolder(folder / "out")


def config(*folders, weights=(1.0, 1.0), **options) -> DataConfig:
    """Returns the settings of batches from those folders."""
    texts = [
        PreparedText(folder=str(folder.path), weight=weight)
        for folder, weight in zip(folders, weights, strict=False)
    ]
    return DataConfig(length=LENGTH, batch=BATCH, prepared=tuple(texts), **options)


def encoded(documents: list[str]) -> list[tuple[int, ...]]:
    """Returns the tokens of each document, with the end of text."""
    end = tokenizer().token_to_id("<|endoftext|>")
    return [(*tokenizer().encode(text).ids, end) for text in documents]


def documents_of(folder: PreparedFolder) -> list[tuple[int, ...]]:
    """Returns all documents of a folder, in its order."""
    lengths = folder.lengths()
    numbers = np.arange(len(lengths))
    pieces = document_pieces(lengths, numbers, np.zeros_like(numbers), lengths)
    return [tuple(tokens.tolist()) for tokens in folder.read(pieces)]


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Reads every file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

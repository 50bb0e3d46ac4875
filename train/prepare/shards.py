"""A part of the sources, tokenised into shards: the work of one process."""

import array
import dataclasses
import hashlib
import itertools
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from tokenizers import Tokenizer

from hydrahead_jax.errors import UserError
from train.prepare.readers import Document, read_part
from train.prepare.sources import Part
from train.prepared.folder import RECORD_TOKENS
from train.run_folder import read_json, write_json

Fate = Literal["written", "empty", "other_split", "unusable"]

WORK = "work"
_WRITER_OPTIONS = "group_size:1,zstd:1"
_CHARACTERS_AT_ONCE = 2**20
_DOCUMENTS_AT_ONCE = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What is the same for every part.

    Attributes:
      out: folder of the shards.
      tokenizer: its tokenizer.json.
      end_of_text: token after every document.
      dtype: of the tokens, such as "<u2".
      text_field: of JSON objects, or column of Parquet files.
      shard_tokens: a shard ends with the document that reaches them.
      held_out: share of the documents, chosen by a hash of their text.
      split: which of the two sides is written.
      skip_bad: whether unusable records are left out; they end the work otherwise.
    """

    out: Path
    tokenizer: Path
    end_of_text: int
    dtype: str
    text_field: str
    shard_tokens: int
    held_out: float
    split: Literal["train", "held_out"]
    skip_bad: bool


@dataclasses.dataclass
class Counts:
    """What became of the documents of a part, so far."""

    written: int = 0
    empty: int = 0
    other_split: int = 0
    unusable: int = 0

    @property
    def read(self) -> int:
        return self.written + self.empty + self.other_split + self.unusable

    def add(self, fate: Fate) -> None:
        setattr(self, fate, getattr(self, fate) + 1)


def make_shards(
    job: Job, tokenizer: Tokenizer, number: int, part: Part, advance: Callable[[float], None]
) -> None:
    """Writes the shards of part `number` that are not there, then its record.

    Args:
      advance: takes the share of the part that is done; it may raise, to stop.

    Raises:
      UserError: the part cannot be read or the shards not written.
    """
    shards = finished_shards(job.out, number)
    counts = Counts(**shards[-1]["counts"]) if shards else Counts()
    documents = itertools.islice(read_part(part, job.text_field), counts.read, None)
    try:
        shard = None
        for fate, tokens, done in _tokenised(job, tokenizer, documents):
            advance(done)
            counts.add(fate)
            if tokens is not None:
                shard = shard or _Shard(job, shard_name(number, len(shards)))
                shard.write(tokens)
            if shard is not None and shard.tokens >= job.shard_tokens:
                shards.append(shard.finish(counts))
                shard = None
        if shard is not None:
            shards.append(shard.finish(counts))
        record = {"counts": dataclasses.asdict(counts), "shards": len(shards)}
        write_json(part_record(job.out, number), record)
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot write to {job.out}: {error}") from error


def shard_name(part: int, shard: int) -> str:
    return f"shard-{part:05d}-{shard:03d}.arrayrecord"


def part_record(out: Path, part: int) -> Path:
    """Written when a part is done."""
    return out / WORK / f"part-{part:05d}.json"


def lengths_file(out: Path, shard: str) -> Path:
    """Tokens of each document of a shard."""
    return out / WORK / f"{shard}.npy"


def finished_shards(out: Path, part: int) -> list[dict]:
    """Records of the first shards of a part, as long as each is whole."""
    found = []
    while (record := _shard_record(out, shard_name(part, len(found)))) is not None:
        found.append(record)
    return found


def _shard_record(out: Path, name: str) -> dict | None:
    path = out / WORK / f"{name}.json"
    record = read_json(path) if path.is_file() else None
    shard = out / name
    whole = record and shard.is_file() and shard.stat().st_size == record["bytes"]
    return record if whole else None


def _tokenised(
    job: Job, tokenizer: Tokenizer, documents: Iterator[Document]
) -> Iterator[tuple[Fate, np.ndarray | None, float]]:
    """What becomes of each document, its tokens, and the share of the part that is read."""
    for batch in _batches(documents):
        fates = [_fate(job, document) for document in batch]
        texts = [d.text for d, fate in zip(batch, fates, strict=True) if fate == "written"]
        encoded = iter(tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        for document, fate in zip(batch, fates, strict=True):
            tokens = None
            if fate == "written":
                tokens = np.array([*next(encoded).ids, job.end_of_text], job.dtype)
            yield fate, tokens, document.done


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch, characters = [], 0
    for document in documents:
        batch.append(document)
        characters += len(document.text or "")
        if characters >= _CHARACTERS_AT_ONCE or len(batch) == _DOCUMENTS_AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _fate(job: Job, document: Document) -> Fate:
    if document.text is None:
        if not job.skip_bad:
            raise UserError(f"{document.flaw}; mend it, or leave such records out by --skip-bad")
        return "unusable"
    if not document.text.strip():
        return "empty"
    if job.held_out:
        digest = hashlib.blake2b(document.text.encode("utf-8"), digest_size=8).digest()
        is_held_out = int.from_bytes(digest) < job.held_out * 2**64
        if is_held_out != (job.split == "held_out"):
            return "other_split"
    return "written"


class _Shard:
    """A shard while it is written; it gets its name when it is whole."""

    def __init__(self, job: Job, name: str):
        self._out, self._name = job.out, name
        self._partial = job.out / WORK / f"{name}.partial"
        self._writer = ArrayRecordWriter(str(self._partial), _WRITER_OPTIONS)
        self._lengths = array.array("I")
        self._records = self._checksum = 0
        self.tokens = 0

    def write(self, tokens: np.ndarray) -> None:
        data = tokens.tobytes()
        step = RECORD_TOKENS * tokens.itemsize
        for start in range(0, len(data), step):
            self._writer.write(data[start : start + step])
            self._records += 1
        self._checksum = zlib.crc32(data, self._checksum)
        self._lengths.append(len(tokens))
        self.tokens += len(tokens)

    def finish(self, counts: Counts) -> dict:
        self._writer.close()
        with self._partial.open("rb") as file:
            os.fsync(file.fileno())
        lengths = lengths_file(self._out, self._name)
        np.save(lengths, np.array(self._lengths, "<u4"))
        self._partial.replace(self._out / self._name)
        record = {
            "name": self._name,
            "documents": len(self._lengths),
            "records": self._records,
            "tokens": self.tokens,
            "bytes": (self._out / self._name).stat().st_size,
            "checksum": self._checksum,
            "counts": dataclasses.asdict(counts),
        }
        write_json(self._out / WORK / f"{self._name}.json", record)
        return record

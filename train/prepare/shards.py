"""Tokenises a part of the sources into shards, in one process."""

import array
import dataclasses
import itertools
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from tokenizers import Tokenizer

from hydrahead_jax.errors import UserError
from hydrahead_jax.json_file import read_json, write_json
from train.data.documents.counts import Counts
from train.data.documents.parts import Part
from train.data.documents.read import read_part
from train.data.prepared.folder import RECORD_TOKENS
from train.prepare.job import WORK, Job, lengths_file, part_record, shard_name
from train.prepare.tokenise import tokenised

_WRITER_OPTIONS = "group_size:1,zstd:1"


def make_shards(
    job: Job, tokenizer: Tokenizer, number: int, part: Part, advance: Callable[[float], None]
) -> None:
    """Writes the missing shards of part `number`, then its record.

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
        for fate, tokens, document in tokenised(job, tokenizer, documents):
            advance(document.done)
            counts.add(fate, document)
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
        raise UserError(
            f"cannot write to {job.out}: {error}; free space or choose another --out, and run the "
            "command again"
        ) from error


def finished_shards(out: Path, part: int) -> list[dict]:
    """Returns the records of a part's first shards, up to the first that is not complete."""
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


class _Shard:
    """Writes one shard, which gets its name when it is complete."""

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

"""Joins finished shards: writes the lengths of all documents and the manifest."""

import hashlib
import shutil
from pathlib import Path

import numpy as np

from hydrahead_jax.errors import UserError
from hydrahead_jax.json_file import dumps, read_json, write_json
from train.data.documents.counts import Counts
from train.data.documents.find import Found
from train.data.prepared.folder import FORMAT, LENGTHS, MANIFEST
from train.files.versions import versions
from train.prepare.job import WORK, Job, lengths_file, part_record
from train.prepare.shards import finished_shards

_MOST_NAMED = 1000


def finish(job: Job, asked: dict, parts: int, found: Found, vocabulary: dict) -> tuple[dict, str]:
    """Writes the lengths and the manifest; returns that, and a sentence on what there is.

    Raises:
      UserError: a shard is damaged.
    """
    shards, counts = _finished(job, parts)
    _join_lengths(job.out, [shard["name"] for shard in shards])
    content = [job.dtype, vocabulary["vocabulary"]]
    content += [[shard[k] for k in ("documents", "tokens", "checksum")] for shard in shards]
    manifest = {
        "format": FORMAT,
        "checksum": hashlib.sha256(dumps(content).encode()).hexdigest(),
        "documents": sum(shard["documents"] for shard in shards),
        "tokens": sum(shard["tokens"] for shard in shards),
        "left_out": {k: getattr(counts, k) for k in ("empty", "other_split", "unusable")},
        "unusable": {"reasons": counts.reasons, "examples": counts.examples},
        "halves_of_surrogate_pairs_replaced": counts.mended,
        "not_read": {
            "count": len(found.not_read),
            "files": [[name, why] for name, why in found.not_read[:_MOST_NAMED]],
        },
        "dtype": job.dtype,
        "end_of_text": job.end_of_text,
        "tokenizer": {"file": asked["tokenizer"], **vocabulary},
        "asked": {k: v for k, v in asked.items() if k not in ("tokenizer", "sources")},
        "sources": len(asked["sources"]),
        "versions": versions(),
        "shards": shards,
    }
    write_json(job.out / MANIFEST, manifest)
    shutil.rmtree(job.out / WORK)
    return manifest, _summary(job.out, manifest, counts)


def _finished(job: Job, parts: int) -> tuple[list[dict], Counts]:
    shards, counts = [], Counts()
    for part in range(parts):
        record = read_json(part_record(job.out, part))
        found = finished_shards(job.out, part)
        if len(found) != record["shards"]:
            part_record(job.out, part).unlink()
            raise UserError(f"a shard in {job.out} is damaged; run the command again")
        counts.add_all(Counts(**record["counts"]))
        shards += [{k: v for k, v in shard.items() if k != "counts"} for shard in found]
    return shards, counts


def _join_lengths(out: Path, shards: list[str]) -> None:
    lengths = [np.load(lengths_file(out, shard)) for shard in shards]
    partial = out / WORK / LENGTHS
    np.save(partial, np.concatenate([np.zeros(0, "<u4"), *lengths]))
    partial.replace(out / LENGTHS)


def _summary(out: Path, manifest: dict, counts: Counts) -> str:
    left_out = counts.left_out()
    return (
        f"{out} holds {manifest['documents']} documents, {manifest['tokens']} tokens, in "
        f"{len(manifest['shards'])} shards" + (f"; {left_out}" if left_out else "")
    )

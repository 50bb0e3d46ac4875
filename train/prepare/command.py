"""`python -m train prepare`: what is asked for, what is left to do, and the manifest at the end."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from hydrahead_jax.errors import UserError
from hydrahead_jax.json_file import read_json, write_json
from train.config_file import differences
from train.prepare.job import WORK, Job, lengths_file, part_record
from train.prepare.shards import finished_shards
from train.prepare.sources import Part, SourceFile, find_files, make_parts
from train.prepare.workers import run_parts
from train.prepared.folder import FORMAT, LENGTHS, MANIFEST, PreparedFolder
from train.tokenizer import end_of_text, load_tokenizer, vocabulary_checksum
from train.versions import versions

_ASKED = "prepare.json"
_BYTES_PER_TOKEN = 4


def prepare(
    sources: tuple[Path, ...],
    tokenizer: Path,
    out: Path,
    *,
    workers: int,
    shard_tokens: int = 2**25,
    text_field: str = "text",
    held_out: float = 0.0,
    split: Literal["train", "held_out"] = "train",
    skip_bad: bool = False,
    say: Callable[[str], None] = print,
) -> dict:
    """Tokenises what is left of the sources; the result does not depend on `workers`.

    Args:
      sources: files, and folders of them.
      tokenizer: folder with a tokenizer.json, or that file.
      out: folder that is made or continued.
      workers: processes.
      shard_tokens: a shard ends with the document that reaches them; a worker's part of the
        sources is about as large.
      text_field: of JSON objects, or column of Parquet files.
      held_out: share of the documents that is set apart, by a hash of their text.
      split: which side is written.
      skip_bad: whether records that cannot be used are left out.
      say: takes a sentence for the user.

    Returns:
      The manifest.

    Raises:
      UserError: the input is not right, `out` holds something else or cannot be written, or a
        record cannot be used.
    """
    _check(workers, shard_tokens, held_out, split)
    path = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
    loaded = load_tokenizer(path)
    vocabulary = loaded.get_vocab_size()
    job = Job(
        out=out,
        tokenizer=path,
        end_of_text=end_of_text(loaded),
        dtype=np.min_scalar_type(max(loaded.get_vocab().values())).str,
        text_field=text_field,
        shard_tokens=shard_tokens,
        held_out=held_out,
        split=split,
        skip_bad=skip_bad,
    )
    files = _files(sources, out)
    parts = make_parts(files, shard_tokens * _BYTES_PER_TOKEN, text_field)
    asked = _asked(job, files)
    try:
        if _open(out, asked):
            manifest = PreparedFolder(out).manifest
            say(f"{out} is finished; nothing to do")
            return manifest
        run_parts(job, _left(job, parts), min(workers, len(parts)), say)
        tokens = {"vocabulary": vocabulary_checksum(loaded), "size": vocabulary}
        manifest = _finish(job, asked, len(parts), tokens)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error}") from error
    say(_summary(out, manifest))
    return manifest


def _check(workers: int, shard_tokens: int, held_out: float, split: str) -> None:
    if workers < 1 or shard_tokens < 1:
        raise UserError("--workers and --shard-tokens must be 1 or more")
    if not 0 <= held_out < 1:
        raise UserError(f"--held-out {held_out} is not a share from 0 to below 1")
    if split == "held_out" and not held_out:
        raise UserError("--split held_out writes nothing without --held-out, such as 0.01")


def _files(sources: tuple[Path, ...], out: Path) -> list[SourceFile]:
    for source in sources:
        if out.resolve().is_relative_to(source.resolve()):
            raise UserError(f"{out} lies in the source {source}; choose a folder outside of it")
    return find_files(sources)


def _asked(job: Job, files: list[SourceFile]) -> dict:
    """All that determines the result."""
    try:
        fingerprints = [file.fingerprint() for file in files]
    except OSError as error:
        raise UserError(f"cannot read the sources: {error}") from error
    return {
        "tokenizer": hashlib.sha256(job.tokenizer.read_bytes()).hexdigest(),
        "text_field": job.text_field,
        "shard_tokens": job.shard_tokens,
        "held_out": job.held_out,
        "split": job.split,
        "sources": fingerprints,
    }


def _open(out: Path, asked: dict) -> bool:
    """Makes the folder, or checks that it is of the same job; whether that is finished."""
    path = out / _ASKED
    if path.is_file():
        found = read_json(path)
        if found["tokenizer"] != asked["tokenizer"]:
            raise UserError(f"{out} was begun with another tokenizer; choose another --out")
        if len(found["sources"]) != len(asked["sources"]):
            raise UserError(
                f"{out} was begun with {len(found['sources'])} source files, now there are "
                f"{len(asked['sources'])}; choose another --out"
            )
        if changes := differences(found, asked):
            raise UserError(f"{out} was begun differently: {changes[0]}; choose another --out")
        return (out / MANIFEST).is_file()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and holds no prepared text; choose another --out")
    (out / WORK).mkdir(parents=True)
    write_json(path, asked)
    return False


def _left(job: Job, parts: list[Part]) -> dict[int, Part]:
    for partial in (job.out / WORK).glob("*.partial"):
        partial.unlink()
    done = lambda number: part_record(job.out, number).is_file()
    return {number: part for number, part in enumerate(parts) if not done(number)}


def _finish(job: Job, asked: dict, parts: int, vocabulary: dict) -> dict:
    """Puts the lengths of all shards together and writes the manifest."""
    shards, fates = [], Counter()
    for part in range(parts):
        record = read_json(part_record(job.out, part))
        found = finished_shards(job.out, part)
        if len(found) != record["shards"]:
            part_record(job.out, part).unlink()
            raise UserError(f"a shard in {job.out} is damaged; give the command once more")
        fates.update(record["counts"])
        shards += found
    _join_lengths(job.out, [shard["name"] for shard in shards])
    shards = [{k: v for k, v in shard.items() if k != "counts"} for shard in shards]
    content = [job.dtype, vocabulary["vocabulary"]]
    content += [[shard[k] for k in ("documents", "tokens", "checksum")] for shard in shards]
    manifest = {
        "format": FORMAT,
        "checksum": hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        "documents": sum(shard["documents"] for shard in shards),
        "tokens": sum(shard["tokens"] for shard in shards),
        "left_out": {fate: count for fate, count in fates.items() if fate != "written"},
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
    return manifest


def _join_lengths(out: Path, shards: list[str]) -> None:
    lengths = [np.load(lengths_file(out, shard)) for shard in shards]
    partial = out / WORK / LENGTHS
    np.save(partial, np.concatenate([np.zeros(0, "<u4"), *lengths]))
    partial.replace(out / LENGTHS)


def _summary(out: Path, manifest: dict) -> str:
    names = {"empty": "empty", "other_split": "of the other split", "unusable": "unusable"}
    left_out = [f"{n} {names[fate]}" for fate, n in manifest["left_out"].items() if n]
    more = f"; left out: {', '.join(left_out)}" if left_out else ""
    return (
        f"{out} holds {manifest['documents']} documents, {manifest['tokens']} tokens, in "
        f"{len(manifest['shards'])} shards{more}"
    )

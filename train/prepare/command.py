"""Runs `python -m train prepare`: finds the text, makes the missing shards, writes the manifest."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from hydrahead_jax.errors import UserError
from hydrahead_jax.local_path import local_path
from hydrahead_jax.text_files.names import shown
from train.data.documents.checksum import Fingerprint, fingerprints, first_changed
from train.data.documents.find import Found, SourceFile, find_files
from train.data.documents.parts import Part, make_parts
from train.data.prepared.folder import PreparedFolder
from train.data.tokenizer import end_of_text, load_tokenizer, vocabulary_checksum
from train.files.progress import Progress
from train.prepare.asked import disown, open_folder, what_is_asked
from train.prepare.job import WORK, Job, part_record
from train.prepare.manifest import finish
from train.prepare.workers import run_parts

_CHECK = "MiB of sources checked"
_MIB = 2**20
_MUCH_TO_CHECK = 1024
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
    """Tokenises the sources as far as that is not done; the result does not depend on `workers`.

    Args:
      sources: files, and folders of them.
      tokenizer: folder with a tokenizer.json, or that file.
      out: folder that is made or continued.
      workers: number of processes.
      shard_tokens: a shard ends with the document that reaches them; a worker's part of the
        sources is about as large.
      text_field: field of JSON objects, or column of Parquet files, that holds the text.
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
    sources, out = tuple(local_path(source) for source in sources), local_path(out)
    tokenizer = local_path(tokenizer)
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
    found = _find(sources, out)
    if left_out := found.left_out():
        say(left_out)
    parts = make_parts(found.files, shard_tokens * _BYTES_PER_TOKEN, text_field)
    before = _fingerprints(found.files, workers, say)
    asked = what_is_asked(job, before)
    try:
        if open_folder(out, asked):
            manifest = PreparedFolder(out).manifest
            say(f"{out} is finished; nothing to do")
            return manifest
        run_parts(job, _left(job, parts), min(workers, len(parts)), say)
        if changed := first_changed(found.files, before):
            disown(out)
            raise UserError(
                f"{shown(changed.path)} changed while it was read; delete {out} and run the "
                "command again"
            )
        tokens = {"vocabulary": vocabulary_checksum(loaded), "size": vocabulary}
        manifest, sentence = finish(job, asked, len(parts), found, tokens)
    except OSError as error:
        raise UserError(
            f"cannot write to {out}: {error}; free space or choose another --out, and run the "
            "command again"
        ) from error
    say(sentence)
    return manifest


def _check(workers: int, shard_tokens: int, held_out: float, split: str) -> None:
    if workers < 1 or shard_tokens < 1:
        raise UserError("--workers and --shard-tokens must be 1 or more")
    if not 0 <= held_out < 1:
        raise UserError(f"--held-out {held_out} must be a share of at least 0 and below 1")
    if split == "held_out" and not held_out:
        raise UserError("--split held_out needs --held-out above 0, such as 0.01")


def _find(sources: tuple[Path, ...], out: Path) -> Found:
    _check_outside(out, [source.resolve() for source in sources])
    found = find_files(sources)
    _check_outside(out, found.folders)
    return found


def _check_outside(out: Path, folders: list[Path]) -> None:
    target = out.resolve()
    for folder in folders:
        if target.is_relative_to(folder):
            raise UserError(
                f"{out} lies in the source {shown(folder)}; choose a folder outside of it"
            )


def _fingerprints(
    files: list[SourceFile], workers: int, say: Callable[[str], None]
) -> list[Fingerprint]:
    total = -(-sum(file.bytes for file in files) // _MIB)
    if total < _MUCH_TO_CHECK:
        return fingerprints(files, workers)
    with Progress(say) as stages:
        return fingerprints(files, workers, lambda done: stages(_CHECK, done // _MIB, total))


def _left(job: Job, parts: list[Part]) -> dict[int, Part]:
    for partial in (job.out / WORK).glob("*.partial"):
        partial.unlink()
    done = lambda number: part_record(job.out, number).is_file()
    return {number: part for number, part in enumerate(parts) if not done(number)}

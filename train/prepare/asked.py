"""Records the settings of a prepared folder, and refuses to continue with others."""

import hashlib
from pathlib import Path

from hydrahead_jax import resumable
from hydrahead_jax.errors import UserError
from hydrahead_jax.text_files.names import shown
from train.data.documents.checksum import Fingerprint
from train.data.prepared.folder import MANIFEST
from train.prepare.job import WORK, Job

_ASKED = "prepare.json"
_RULES = 2
"""Version of the rules for reading text.

Folders without a number have checksums of both ends of each file only.
"""


def what_is_asked(job: Job, sources: list[Fingerprint]) -> dict:
    """Returns all that determines the result, as JSON."""
    return {
        "rules": _RULES,
        "tokenizer": hashlib.sha256(job.tokenizer.read_bytes()).hexdigest(),
        "text_field": job.text_field,
        "shard_tokens": job.shard_tokens,
        "held_out": job.held_out,
        "split": job.split,
        "sources": [source.content for source in sources],
    }


def open_folder(out: Path, asked: dict) -> bool:
    """Makes the folder, or checks that it is of the same job; returns whether that is finished.

    Raises:
      UserError: it is of another job, or holds something else.
    """
    holds = {"holds": "prepared text", "advice": "choose another --out"}
    was_there = resumable.open_folder(out, _ASKED, asked, check=_check_same, **holds)
    (out / WORK).mkdir(exist_ok=True)
    return was_there and (out / MANIFEST).is_file()


def disown(out: Path) -> None:
    """Makes `open_folder` refuse an unfinished folder from now on."""
    (out / _ASKED).unlink()


def _check_same(out: Path, found: dict, asked: dict) -> None:
    if found.get("rules") != asked["rules"]:
        use = ", or train on it unchanged" if (out / MANIFEST).is_file() else ""
        raise UserError(
            f"{out} was made by another version, which did not record whether its sources "
            f"changed; choose another --out{use}"
        )
    if found["tokenizer"] != asked["tokenizer"]:
        raise UserError(f"{out} was begun with another tokenizer; choose another --out")
    if len(found["sources"]) != len(asked["sources"]):
        raise UserError(
            f"{out} was begun with {len(found['sources'])} source files, now there are "
            f"{len(asked['sources'])}; choose another --out"
        )
    for old, new in zip(found["sources"], asked["sources"], strict=True):
        if old != new:
            was = "has changed" if old[0] == new[0] else f"was {_name(old)}"
            raise UserError(
                f"{out} was begun differently: the source {_name(new)} {was}; choose another --out"
            )
    if changes := resumable.differences(found, asked):
        raise UserError(f"{out} was begun differently: {changes[0]}; choose another --out")


def _name(source: list) -> str:
    return shown(source[0].partition("/")[2])

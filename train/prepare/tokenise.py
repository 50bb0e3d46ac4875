"""Tokenises documents, some at a time."""

import hashlib
from collections.abc import Iterator

import numpy as np
from tokenizers import Tokenizer

from hydrahead_jax.errors import UserError
from train.data.documents.counts import Fate, fate_of
from train.data.documents.read import Document
from train.prepare.job import Job

_CHARACTERS_AT_ONCE = 2**20
_DOCUMENTS_AT_ONCE = 512


def tokenised(
    job: Job, tokenizer: Tokenizer, documents: Iterator[Document]
) -> Iterator[tuple[Fate, np.ndarray | None, Document]]:
    """Yields what becomes of each document, its tokens, and the document."""
    for batch in _batches(documents):
        fates = [_fate(job, document) for document in batch]
        texts = [d.text for d, fate in zip(batch, fates, strict=True) if fate == "written"]
        encoded = iter(tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        for document, fate in zip(batch, fates, strict=True):
            tokens = None
            if fate == "written":
                tokens = np.array([*next(encoded).ids, job.end_of_text], job.dtype)
            yield fate, tokens, document


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
    fate = fate_of(document)
    if fate == "unusable" and not job.skip_bad:
        raise UserError(
            f"{document.name()} {document.flaw}; correct it, or leave such records out by "
            "--skip-bad"
        )
    if fate == "written" and job.held_out:
        digest = hashlib.blake2b(document.text.encode("utf-8"), digest_size=8).digest()
        is_held_out = int.from_bytes(digest) < job.held_out * 2**64
        if is_held_out != (job.split == "held_out"):
            return "other_split"
    return fate

"""Reads text from files, or from the standard library, and tokenises it."""

import dataclasses
import functools
import logging
import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.dataclass_json import RECORDED_IF_SET
from hydrahead_jax.errors import UserError
from hydrahead_jax.evals.haystack import Haystack
from hydrahead_jax.evals.stop_tokens import stop_tokens
from hydrahead_jax.local_path import local_path
from hydrahead_jax.text_files.names import shown
from hydrahead_jax.token_ids import check_tokenizer
from train import distributed
from train.data.documents.counts import Counts, fate_of
from train.data.documents.find import find_files
from train.data.documents.parts import make_parts
from train.data.documents.read import read_part
from train.data.stdlib_text import Split, stdlib_documents
from train.data.tokenizer import added_ids, end_of_text, load_tokenizer, vocabulary_checksum

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSource:
    """Describes text that fits into memory.

    Attributes:
      folder: file or folder of text, read as `python -m train prepare` reads it; None means the
        standard library's own sources.
      text_field: field of JSON objects, or column of Parquet files, that holds the text.
      skip_bad: whether unusable records are left out, and counted; otherwise they end the command.
    """

    folder: str | None = None
    text_field: str = dataclasses.field(default="text", metadata=RECORDED_IF_SET)
    skip_bad: bool = dataclasses.field(default=False, metadata=RECORDED_IF_SET)


@functools.cache
def _say_once(sentence: str) -> None:
    if distributed.is_first():
        _log.warning(sentence)


def read_documents(source: TextSource, split: Split = "train") -> list[str]:
    """Reads the documents, in a fixed order; a folder has no held-out part.

    What was left out is logged as a warning, once.

    Raises:
      UserError: the folder is missing or holds no text, or a record cannot be used.
    """
    if source.folder is None:
        return stdlib_documents(split)
    folder = local_path(source.folder)
    if not folder.exists():
        raise UserError(f"there is no data folder {shown(folder)}; check the path")
    found = find_files((folder,))
    counts, texts = Counts(), []
    for part in make_parts(found.files, sys.maxsize, source.text_field):
        for document in read_part(part, source.text_field):
            if document.text is None and not source.skip_bad:
                raise UserError(
                    f"{document.name()} {document.flaw}; correct it, or leave such records out by "
                    "skip_bad=True"
                )
            fate = fate_of(document)
            counts.add(fate, document)
            if fate == "written":
                texts.append(document.text)
    notes = [note for note in (found.left_out(), counts.left_out()) if note]
    if not texts:
        raise UserError(
            "; ".join([f"there is no text in {shown(folder)}", *notes, "give another folder"])
        )
    if notes:
        _say_once(f"{shown(folder)}: {'; '.join(notes)}")
    return texts


def encode_documents(tokenizer: Tokenizer, documents: list[str]) -> list[np.ndarray]:
    """Returns the tokens of each document, followed by the end of text."""
    end = end_of_text(tokenizer)
    encoded = tokenizer.encode_batch(documents, add_special_tokens=False)
    return [np.array([*item.ids, end], np.int32) for item in encoded]


class Corpus:
    """Encodes the documents of every source that is asked for, once."""

    def __init__(self, tokenizer: Tokenizer, stops: tuple[int, ...] = ()):
        """Takes the tokenizer, and `stops`, the tokens that end a reply."""
        self.tokenizer, self.stops = tokenizer, stops
        self._encoded: dict[tuple, list[np.ndarray]] = {}

    @functools.cached_property
    def vocabulary_checksum(self) -> str:
        """Returns the checksum of the tokenizer's vocabulary."""
        return vocabulary_checksum(self.tokenizer)

    def documents(self, source: TextSource, split: Split = "train") -> list[np.ndarray]:
        key = (source, split)
        if key not in self._encoded:
            self._encoded[key] = encode_documents(self.tokenizer, read_documents(source, split))
        return self._encoded[key]

    def haystack(self, source: TextSource, split: Split = "train") -> Haystack:
        """Returns text to put needles into; it is encoded when its tokens are asked for.

        A folder has no held-out part.
        """

        def encode() -> np.ndarray:
            tokens = np.concatenate(self.documents(source, split))
            return tokens[tokens != end_of_text(self.tokenizer)]

        return Haystack(tuple(read_documents(source, split)), encode)


def load_corpus(path: Path, model: ModelConfig) -> Corpus:
    """Returns a corpus that encodes text with the tokenizer.json at `path`.

    Raises:
      UserError: there is no such file, or it has tokens that the model does not know.
    """
    tokenizer = load_tokenizer(path)
    check_tokenizer(tokenizer, model.vocab, str(path), added_ids(path))
    return Corpus(tokenizer, stop_tokens(tokenizer, path.parent))

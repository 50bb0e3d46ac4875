"""Text: from files, or from the standard library, to tokens."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.errors import UserError
from hydrahead_jax.evals.haystack import Haystack
from train.corpus import Split, stdlib_documents
from train.tokenizer import end_of_text, load_tokenizer, vocabulary_checksum

_SUFFIXES = (".txt", ".md", ".py", ".jsonl")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSource:
    """`folder` holds .txt, .md and .py files, one document each, and .jsonl files with a document
    in the "text" of every line; None is the standard library's own sources."""

    folder: str | None = None


def read_documents(source: TextSource, split: Split = "train") -> list[str]:
    """The documents, in a fixed order; a folder has no held-out part.

    Raises:
      UserError: the folder is missing or holds no text.
    """
    if source.folder is None:
        return stdlib_documents(split)
    folder = Path(source.folder)
    if not folder.is_dir():
        raise UserError(f"there is no data folder {folder}")
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in _SUFFIXES)
    texts = [text for path in files for text in _read(path) if text.strip()]
    if not texts:
        raise UserError(f"the data folder {folder} holds no text in {', '.join(_SUFFIXES)} files")
    return texts


def _read(path: Path) -> list[str]:
    content = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix != ".jsonl":
        return [content]
    texts = []
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            texts.append(str(json.loads(line)["text"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f'{path}, line {number}: no JSON object with a "text"') from error
    return texts


def encode_documents(tokenizer: Tokenizer, documents: list[str]) -> list[np.ndarray]:
    """Tokens of each document, the end of text after them."""
    end = end_of_text(tokenizer)
    encoded = tokenizer.encode_batch(documents, add_special_tokens=False)
    return [np.array([*item.ids, end], np.int32) for item in encoded]


class Corpus:
    """The documents of every source that was asked for, encoded once."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self._encoded: dict[tuple, list[np.ndarray]] = {}

    @functools.cached_property
    def vocabulary_checksum(self) -> str:
        """Of the tokenizer's vocabulary."""
        return vocabulary_checksum(self.tokenizer)

    def documents(self, source: TextSource, split: Split = "train") -> list[np.ndarray]:
        key = (source, split)
        if key not in self._encoded:
            self._encoded[key] = encode_documents(self.tokenizer, read_documents(source, split))
        return self._encoded[key]

    def haystack(self, source: TextSource, split: Split = "train") -> Haystack:
        """Text to put needles into; it is encoded when its tokens are asked for. A folder has no
        held-out part."""

        def encode() -> np.ndarray:
            tokens = np.concatenate(self.documents(source, split))
            return tokens[tokens != end_of_text(self.tokenizer)]

        return Haystack(tuple(read_documents(source, split)), encode)


def load_corpus(path: Path, model: ModelConfig) -> Corpus:
    """Text in the tokens of a tokenizer.json.

    Raises:
      UserError: there is none, or it has tokens that the model does not know.
    """
    tokenizer = load_tokenizer(path)
    if tokenizer.get_vocab_size() > model.vocab:
        raise UserError(
            f"{path} has {tokenizer.get_vocab_size()} tokens, the model knows {model.vocab}"
        )
    return Corpus(tokenizer)

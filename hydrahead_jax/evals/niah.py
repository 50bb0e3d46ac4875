"""Makes needle-in-a-haystack documents: needles `key value value` in real text, queries at the end.

Keys and values are symbols of their own in the tokenizer, `<key_00>` and `<val_00>` and so on, so
an answer has the same token length in every document and a distractor is drawn by swapping ids.
"""

import re
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from hydrahead_jax.errors import UserError

VALUE_LENGTH = 2
NEEDLE_LENGTH = 1 + VALUE_LENGTH


class NeedleSymbols(NamedTuple):
    """Lists the token ids that stand for keys and for values."""

    keys: np.ndarray
    values: np.ndarray


class NeedleDocument(NamedTuple):
    """Says the tokens of a document that ends with queries, each a key and then its answer.

    Attributes:
      tokens_T: int32, the answers included.
      answer_T: True on answer tokens.
      needle_starts: where the key of each needle stands.
      asked: for each query, in order, the index of its needle.
    """

    tokens_T: np.ndarray
    answer_T: np.ndarray
    needle_starts: np.ndarray
    asked: np.ndarray


def has_needle_symbols(tokenizer: Tokenizer) -> bool:
    """Says whether a tokenizer has both key and value symbols."""
    return all(map(len, _symbols(tokenizer)))


def needle_symbols(tokenizer: Tokenizer) -> NeedleSymbols:
    """Returns the key and value symbols of a tokenizer.

    Raises:
      UserError: it has none.
    """
    symbols = _symbols(tokenizer)
    if not all(map(len, symbols)):
        raise UserError(
            "the tokenizer has no <key_00> and <val_00> symbols, which needle documents are made "
            "of; use a tokenizer that was made by `python -m train pretrain`"
        )
    return symbols


def needle_document(
    symbols: NeedleSymbols,
    haystack: np.ndarray,
    rng: np.random.Generator,
    *,
    length: int,
    needles: int,
    asked: np.ndarray | None = None,
) -> NeedleDocument:
    """Makes one document of exactly `length` tokens.

    Args:
      symbols: of the tokenizer.
      haystack: text tokens, at least as many as the document needs; a random stretch is taken.
      rng: consumed in a fixed order, so a seed determines the document.
      length: tokens in all.
      needles: keys are distinct, values too.
      asked: indices of the needles to ask for, in order; one at random if None.

    Raises:
      UserError: the needles and queries do not fit, or there are fewer keys than needles.
    """
    if asked is None:
        asked = rng.integers(needles, size=1)
    body = length - NEEDLE_LENGTH * len(asked)
    text = body - NEEDLE_LENGTH * needles
    if text < needles or needles > len(symbols.keys):
        raise UserError(
            f"{needles} needles and {len(asked)} queries do not fit into {length} tokens with "
            f"{len(symbols.keys)} keys; ask for longer documents or fewer needles"
        )
    if len(haystack) < text:
        raise UserError(
            f"the haystack has {len(haystack)} tokens, the document needs {text}; give more text"
        )
    keys = rng.choice(symbols.keys, needles, replace=False)
    codes = rng.choice(len(symbols.values) ** VALUE_LENGTH, needles, replace=False)
    digits = np.stack(np.unravel_index(codes, (len(symbols.values),) * VALUE_LENGTH), axis=1)
    facts = np.concatenate([keys[:, None], symbols.values[digits]], axis=1)

    offset = rng.integers(len(haystack) - text + 1)
    depths = np.sort(rng.choice(text, needles, replace=False))
    pieces = np.split(haystack[offset : offset + text], depths)
    parts = [pieces[0]]
    for fact, piece in zip(facts, pieces[1:], strict=True):
        parts += [fact, piece]
    tokens_T = np.concatenate([*parts, facts[asked].ravel()]).astype(np.int32)
    answer_T = np.zeros(length, bool)
    answer_T[body:] = np.tile([False] + [True] * VALUE_LENGTH, len(asked))
    needle_starts = depths + NEEDLE_LENGTH * np.arange(needles)
    return NeedleDocument(tokens_T, answer_T, needle_starts, asked)


def _symbols(tokenizer: Tokenizer) -> NeedleSymbols:
    vocabulary = tokenizer.get_vocab()
    ids = lambda kind: np.array(
        sorted(i for token, i in vocabulary.items() if re.fullmatch(rf"<{kind}_\d+>", token)),
        np.int32,
    )
    return NeedleSymbols(ids("key"), ids("val"))

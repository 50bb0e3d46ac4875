"""Describes and makes needle documents for training."""

import dataclasses
from collections.abc import Callable

import numpy as np
from tokenizers import Tokenizer

from hydrahead_jax.errors import UserError
from hydrahead_jax.evals.niah import NEEDLE_LENGTH, NeedleSymbols, needle_document, needle_symbols
from train.data.text import end_of_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeedleData:
    """Describes the needle documents that are mixed into the text.

    Attributes:
      share: share of needle documents among all pieces, in (0, 1].
      lengths: shortest and longest document, in tokens, its end of text included.
      needles: fewest and most needles in a document.
      queries_per_needle: how often each needle is asked for, in random order.
    """

    share: float
    lengths: tuple[int, int]
    needles: tuple[int, int]
    queries_per_needle: int = 1


def check_needles(needles: NeedleData, length: int, where: str) -> None:
    """Raises UserError where a document could not be made or would not fit into a row."""
    if not 0 < needles.share <= 1:
        raise UserError(f"{where}: needles.share={needles.share} must be above 0 and at most 1")
    most = needles.needles[1]
    least = most * (NEEDLE_LENGTH * (1 + needles.queries_per_needle) + 1) + 1
    if not least <= needles.lengths[0] <= needles.lengths[1] <= length:
        raise UserError(
            f"{where}: needles.lengths={needles.lengths} must be ascending and between {least}, "
            f"which {most} needles with their queries take, and the row length {length}"
        )


def needle_maker(
    needles: NeedleData, documents: list[np.ndarray], tokenizer: Tokenizer, seed: int
) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    """Returns a function: index -> (tokens, True where an answer is).

    An index and a seed give the same document on every machine.

    Raises:
      UserError: the tokenizer has too few needle symbols, or the documents too few tokens.
    """
    end = end_of_text(tokenizer)
    symbols = _symbols(tokenizer, needles)
    haystack = np.concatenate(documents)
    haystack = haystack[haystack != end]
    if len(haystack) < needles.lengths[1]:
        raise UserError(
            f"the text has {len(haystack)} tokens, fewer than a needle document of "
            f"{needles.lengths[1]}; give more text"
        )

    def make(index: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((seed, index))
        count = int(rng.integers(*needles.needles, endpoint=True))
        asked = rng.permutation(np.repeat(np.arange(count), needles.queries_per_needle))
        length = int(rng.integers(*needles.lengths, endpoint=True)) - 1
        document = needle_document(
            symbols, haystack, rng, length=length, needles=count, asked=asked
        )
        return np.append(document.tokens_T, np.int32(end)), np.append(document.answer_T, False)

    return make


def _symbols(tokenizer: Tokenizer, needles: NeedleData) -> NeedleSymbols:
    symbols = needle_symbols(tokenizer)
    if len(symbols.keys) < needles.needles[1]:
        raise UserError(
            f"the tokenizer has {len(symbols.keys)} key symbols, fewer than the "
            f"{needles.needles[1]} needles of a document; lower needles.needles"
        )
    return symbols

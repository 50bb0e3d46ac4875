"""Makes counterfactual pairs of needle documents made of symbols."""

import dataclasses
from typing import Literal

import numpy as np
from tokenizers import Tokenizer

from hydrahead_jax.errors import UserError
from hydrahead_jax.evals.haystack import Haystack
from hydrahead_jax.evals.niah import (
    NEEDLE_LENGTH,
    VALUE_LENGTH,
    NeedleDocument,
    NeedleSymbols,
    needle_document,
    needle_symbols,
)
from hydrahead_jax.selection.probes.pairs import PairRow, ProbePairs, stack_pairs

_TRIES = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class SymbolNeedles:
    """Says which needles a document has.

    Attributes:
      needles: how many needles the haystack has; never more than the tokenizer has keys.
      depth: the part of the haystack, in [0, 1), where the asked needle stands.
    """

    needles: int
    depth: tuple[float, float] = (0.0, 1.0)


def symbol_pairs(
    needles: SymbolNeedles,
    counterfactual: Literal["value", "keys"],
    tokenizer: Tokenizer,
    haystack: Haystack,
    rng: np.random.Generator,
    *,
    length: int,
    pairs: int,
) -> ProbePairs:
    """Makes pairs whose distractor differs from the answer in each token.

    By "value" it is the value of no needle; by "keys" it is that of the needle whose key changes
    places with the asked one.

    Raises:
      UserError: the documents do not fit the length, the haystack or the symbols.
    """
    symbols = needle_symbols(tokenizer)
    needles = dataclasses.replace(needles, needles=min(needles.needles, len(symbols.keys)))
    make = {"value": _other_value, "keys": _swapped_keys}[counterfactual]
    rows = []
    for _ in range(pairs):
        for _ in range(_TRIES):
            document = _document_at_depth(needles, symbols, haystack.tokens, rng, length)
            if (row := make(document, symbols, rng)) is not None:
                rows.append(row)
                break
        else:
            raise UserError(
                f"{len(symbols.values)} value symbols leave no distractor beside "
                f"{needles.needles} needles; use fewer needles or a tokenizer with more value "
                "symbols, and for swapped keys at least 2 needles"
            )
    return stack_pairs(rows, length)


def _document_at_depth(
    needles: SymbolNeedles, symbols: NeedleSymbols, tokens: np.ndarray, rng, length: int
) -> NeedleDocument:
    text = length - NEEDLE_LENGTH * (1 + needles.needles)
    for _ in range(_TRIES):
        document = needle_document(symbols, tokens, rng, length=length, needles=needles.needles)
        index = document.asked[0]
        depth = (document.needle_starts[index] - NEEDLE_LENGTH * index) / text
        if needles.depth[0] <= depth < needles.depth[1]:
            return document
    raise UserError(
        f"{length} tokens leave no room for a needle at depth {needles.depth}; use longer documents"
    )


def _other_value(document: NeedleDocument, symbols: NeedleSymbols, rng) -> PairRow | None:
    """Puts another value into the asked needle; None if the drawn one is another's."""
    values_NJ, answer_J = _values(document)
    if len(symbols.values) < 2:
        return None
    shift_J = rng.integers(1, len(symbols.values), size=VALUE_LENGTH)
    places_J = np.searchsorted(symbols.values, answer_J) + shift_J
    distractor_J = symbols.values[places_J % len(symbols.values)]
    if (values_NJ == distractor_J).all(axis=1).any():
        return None
    corrupt_T = document.tokens_T.copy()
    value = document.needle_starts[document.asked[0]] + 1
    corrupt_T[value : value + VALUE_LENGTH] = distractor_J
    return _row(document, corrupt_T, distractor_J)


def _swapped_keys(document: NeedleDocument, symbols: NeedleSymbols, rng) -> PairRow | None:
    """Swaps the key of the asked needle with that of another one; None if no other is suitable."""
    values_NJ, answer_J = _values(document)
    others = np.flatnonzero((values_NJ != answer_J).all(axis=1))
    if not len(others):
        return None
    other = rng.choice(others)
    places = document.needle_starts[[document.asked[0], other]]
    corrupt_T = document.tokens_T.copy()
    corrupt_T[places] = corrupt_T[places[::-1]]
    return _row(document, corrupt_T, values_NJ[other])


def _values(document: NeedleDocument) -> tuple[np.ndarray, np.ndarray]:
    """Returns the values of all needles, and that of the asked one."""
    places_NJ = document.needle_starts[:, None] + np.arange(1, NEEDLE_LENGTH)
    values_NJ = document.tokens_T[places_NJ]
    return values_NJ, values_NJ[document.asked[0]]


def _row(document: NeedleDocument, corrupt_T: np.ndarray, distractor_J: np.ndarray) -> PairRow:
    prompt_T, answer_J = np.split(document.tokens_T, [-VALUE_LENGTH])
    return PairRow(prompt_T, corrupt_T[:-VALUE_LENGTH], answer_J, distractor_J)

"""Makes documents of multi-query associative recall, and of needles with one query.

A document is pairs of a key and its value, then as many queries, each a key again with its value
behind it, at gaps that a power law draws; filler between them (zoology, arXiv 2312.04927). There
every key is asked for once and no value follows a query. Here it does, as in text, and keys are
drawn with replacement: otherwise the values that were not answered yet would give answers away.

As needles, the pairs stand at random depths in the first half of the filler, and the last two
tokens are one query and its value: at least half a document behind the needle that it repeats.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from hydrahead_jax.dataclass_json import RECORDED_IF_SET
from hydrahead_jax.errors import UserError

TRAIN, TEST = 0, 1  # first words of seeds, so that no test document is a training one


@dataclasses.dataclass(frozen=True, kw_only=True)
class MqarSymbols:
    """Sets the vocabulary, which is filler, then keys, then values, and where the pairs stand.

    Attributes:
      keys: number of keys.
      values: number of values.
      power: exponent of the power law of the gaps; the nearer to 0, the more queries come early.
      fillers: number of filler symbols; each token of filler is drawn from them.
      needles: pairs stand among filler, and one query at the end; `power` has no effect.
    """

    keys: int = 64
    values: int = 64
    power: float = 0.01
    fillers: int = dataclasses.field(default=1, metadata=RECORDED_IF_SET)
    needles: bool = dataclasses.field(default=False, metadata=RECORDED_IF_SET)

    def __post_init__(self):
        if min(self.keys, self.values, self.fillers) < 1 or not 0 < self.power <= 1:
            raise ValueError(
                f"keys={self.keys}, values={self.values} and fillers={self.fillers} must be 1 or "
                f"more, and power={self.power} above 0 and at most 1"
            )

    @property
    def vocab(self) -> int:
        return self.fillers + self.keys + self.values


class MqarDocument(NamedTuple):
    """Holds a document.

    Attributes:
      tokens_T: int32.
      answer_T: True at the value behind each query; it is to be predicted from the token before.
    """

    tokens_T: np.ndarray
    answer_T: np.ndarray


def check_mqar(symbols: MqarSymbols, pairs: int, length: int, where: str) -> None:
    """Raises UserError where no document of so many pairs has this length."""
    if pairs < 1 or length < 4 * pairs:
        raise UserError(
            f"{where}: {pairs} pairs and their queries need {4 * max(pairs, 1)} tokens and the "
            f"document has {length}; use at least 1 pair, and at most a quarter of the length"
        )
    if min(symbols.keys, symbols.values) < pairs:
        raise UserError(
            f"{where}: {pairs} pairs need as many keys and values, and the vocabulary has "
            f"{symbols.keys} and {symbols.values}; lower the pairs or raise both"
        )


def mqar_document(
    symbols: MqarSymbols, rng: np.random.Generator, *, pairs: int, length: int
) -> MqarDocument:
    """Draws a document; `check_mqar` says which ones can be drawn."""
    keys = symbols.fillers + rng.choice(symbols.keys, pairs, replace=False)
    values = symbols.fillers + symbols.keys + rng.choice(symbols.values, pairs, replace=False)
    # One filler symbol draws nothing from rng.
    tokens_T = rng.integers(symbols.fillers, size=length, dtype=np.int32)
    places = _needles if symbols.needles else _pairs_first
    stated, asked = places(symbols, rng, pairs, length)
    tokens_T[stated], tokens_T[stated + 1] = keys, values
    pair = rng.integers(pairs, size=len(asked))
    tokens_T[asked], tokens_T[asked + 1] = keys[pair], values[pair]
    answer_T = np.zeros(length, bool)
    answer_T[asked + 1] = True
    return MqarDocument(tokens_T, answer_T)


def _pairs_first(symbols: MqarSymbols, rng: np.random.Generator, pairs: int, length: int):
    """Returns the places of the keys of the pairs, and of as many queries behind them."""
    gaps = np.arange((length - 2 * pairs) // 2)
    weights = (gaps + 1.0) ** (symbols.power - 1)
    chosen = rng.choice(gaps, pairs, replace=False, p=weights / weights.sum())
    return 2 * np.arange(pairs), 2 * pairs + 2 * chosen


def _needles(symbols: MqarSymbols, rng: np.random.Generator, pairs: int, length: int):
    """Returns the places of the needles' keys in the first half, and of the one query."""
    chosen = np.sort(rng.choice(length // 2 - pairs, pairs, replace=False))
    return chosen + np.arange(pairs), np.array([length - 2])


def mqar_documents(
    symbols: MqarSymbols, seed: int, *, documents: int, pairs: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens and the answers of documents for an evaluation, each [documents, T]."""
    made = (
        mqar_document(
            symbols,
            np.random.default_rng((TEST, seed, pairs, length, index)),
            pairs=pairs,
            length=length,
        )
        for index in range(documents)
    )
    return tuple(np.stack(parts) for parts in zip(*made, strict=True))

"""Makes documents of multi-query associative recall.

A document is pairs of a key and its value, then as many queries, each a key again with its value
behind it, at gaps that a power law draws; filler between them (zoology, arXiv 2312.04927). There
every key is asked for once and no value follows a query. Here it does, as in text, and keys are
drawn with replacement: otherwise the values that were not answered yet would give answers away.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from hydrahead_jax.errors import UserError

FILLER = 0
TRAIN, TEST = 0, 1  # first words of seeds, so that no test document is a training one


@dataclasses.dataclass(frozen=True, kw_only=True)
class MqarSymbols:
    """Sets the vocabulary: token 0 is filler, then come keys, then values.

    Attributes:
      keys: number of keys.
      values: number of values.
      power: exponent of the power law of the gaps; the nearer to 0, the more queries come early.
    """

    keys: int = 64
    values: int = 64
    power: float = 0.01

    def __post_init__(self):
        if min(self.keys, self.values) < 1 or not 0 < self.power <= 1:
            raise ValueError(
                f"keys={self.keys} and values={self.values} must be 1 or more, and "
                f"power={self.power} above 0 and at most 1"
            )

    @property
    def vocab(self) -> int:
        return 1 + self.keys + self.values


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
            f"{where}: {pairs} pairs and their queries take {4 * max(pairs, 1)} tokens and the "
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
    keys = 1 + rng.choice(symbols.keys, pairs, replace=False)
    values = 1 + symbols.keys + rng.choice(symbols.values, pairs, replace=False)
    tokens_T = np.full(length, FILLER, np.int32)
    tokens_T[0 : 2 * pairs : 2], tokens_T[1 : 2 * pairs : 2] = keys, values
    places = np.arange((length - 2 * pairs) // 2)
    weights = (places + 1.0) ** (symbols.power - 1)
    chosen = rng.choice(places, pairs, replace=False, p=weights / weights.sum())
    asked = 2 * pairs + 2 * chosen
    pair = rng.integers(pairs, size=pairs)
    tokens_T[asked], tokens_T[asked + 1] = keys[pair], values[pair]
    answer_T = np.zeros(length, bool)
    answer_T[asked + 1] = True
    return MqarDocument(tokens_T, answer_T)


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

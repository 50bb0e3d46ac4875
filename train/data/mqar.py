"""Describes and makes documents of associative recall, or of needles, for training."""

import dataclasses

import numpy as np

from hydrahead_jax.evals.mqar import TRAIN, MqarDocument, MqarSymbols, check_mqar, mqar_document


@dataclasses.dataclass(frozen=True, kw_only=True)
class MqarData:
    """Describes rows that are one document of associative recall, or of needles, each.

    Attributes:
      pairs: fewest and most pairs of key and value in a document.
      symbols: the vocabulary, and where the pairs stand.
    """

    pairs: tuple[int, int]
    symbols: MqarSymbols


def check_mqar_data(mqar: MqarData, length: int, where: str) -> None:
    """Raises `UserError` where a document cannot be made."""
    for pairs in mqar.pairs:
        check_mqar(mqar.symbols, pairs, length, where)


def mqar_row(mqar: MqarData, seed: int, index: int, row: int, length: int) -> MqarDocument:
    """Returns a row of a batch; the same on every machine."""
    rng = np.random.default_rng((TRAIN, seed, index, row))
    pairs = int(rng.integers(*mqar.pairs, endpoint=True))
    return mqar_document(mqar.symbols, rng, pairs=pairs, length=length)

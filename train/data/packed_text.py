"""Packs text in memory into rows, mixed with needle documents."""

import grain
import numpy as np
from tokenizers import Tokenizer

from train.data.needles import NeedleData, needle_maker

_NEEDLE_DOCUMENTS = 2**31
_ROWS_PACKED_AT_ONCE = 16


def packed_text(
    documents: list[np.ndarray],
    tokenizer: Tokenizer,
    seed: int,
    *,
    length: int,
    needles: NeedleData | None,
    text_weight: float,
    answer_weight: float,
) -> grain.IterDataset:
    """Yields endless rows: tokens, tokens_segment_ids (0 is padding) and weight, each [length].

    Args:
      documents: tokens of each document.
      tokenizer: tokenizer that made the tokens.
      seed: seed of the order and of the needle documents.
      length: tokens of a row; longer documents are cut into pieces.
      needles: None for plain text alone.
      text_weight: weight of every token.
      answer_weight: weight that is added on the answers of needle documents.

    Raises:
      UserError: as `needle_maker`.
    """
    sources, shares = [], []
    if needles is None or needles.share < 1:
        sources.append(
            grain.MapDataset.source(_cut(documents, length))
            .seed(seed)
            .shuffle()
            .repeat()
            .map(lambda tokens: _element(tokens, text_weight))
        )
        shares.append(1.0 if needles is None else 1 - needles.share)
    if needles is not None:
        make = needle_maker(needles, documents, tokenizer, seed)
        element = lambda index: _needle_element(*make(index), text_weight, answer_weight)
        sources.append(grain.MapDataset.range(_NEEDLE_DOCUMENTS).map(element))
        shares.append(needles.share)
    mixed = grain.MapDataset.mix(sources, shares) if len(sources) > 1 else sources[0]
    pieces = mixed.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    return grain.experimental.FirstFitPackIterDataset(
        pieces,
        length_struct={"tokens": length, "weight": length},
        num_packing_bins=_ROWS_PACKED_AT_ONCE,
        seed=seed,
    )


def _cut(documents: list[np.ndarray], length: int) -> list[np.ndarray]:
    """Cuts each document into pieces of `length` tokens and a rest; drops pieces of one token."""
    pieces = [d[start : start + length] for d in documents for start in range(0, len(d), length)]
    return [piece for piece in pieces if len(piece) > 1]


def _element(tokens: np.ndarray, text_weight: float) -> dict:
    return {"tokens": tokens, "weight": np.full(len(tokens), text_weight, np.float32)}


def _needle_element(
    tokens: np.ndarray, answer: np.ndarray, text_weight: float, answer_weight: float
) -> dict:
    element = _element(tokens, text_weight)
    return element | {"weight": element["weight"] + answer.astype(np.float32) * answer_weight}

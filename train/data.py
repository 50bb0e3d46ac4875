"""From documents to packed batches: shuffled, mixed with needle documents, resumable."""

import dataclasses
import json
from collections.abc import Iterator

import grain
import jax
import numpy as np

from hydrahead_jax.errors import UserError
from hydrahead_jax.evals.niah import NEEDLE_LENGTH, NeedleSymbols, needle_document, needle_symbols
from train.text import Corpus, TextSource, end_of_text

_NEEDLE_DOCUMENTS = 2**31
_ROWS_PACKED_AT_ONCE = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeedleData:
    """Attributes:
    share: of needle documents among all pieces, in (0, 1].
    lengths: shortest and longest document, in tokens, its end of text included.
    needles: fewest and most in a document.
    queries_per_needle: how often each is asked for, in random order.
    """

    share: float
    lengths: tuple[int, int]
    needles: tuple[int, int]
    queries_per_needle: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Attributes:
    length: tokens of a row.
    batch: rows.
    text: plain text; also the haystack of needle documents.
    needles: None for plain text alone.
    text_weight: of every token in the next-token loss.
    answer_weight: added on the answers of needle documents.
    """

    length: int
    batch: int
    text: TextSource = TextSource()
    needles: NeedleData | None = None
    text_weight: float = 1.0
    answer_weight: float = 0.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Packed documents.

    Attributes:
      tokens_BT: int32.
      segment_ids_BT: document of each token within its row, from 1; 0 is padding.
      loss_weight_BT: weight of predicting this token; 0 on padding.
    """

    tokens_BT: jax.Array
    segment_ids_BT: jax.Array
    loss_weight_BT: jax.Array


def abstract_batch(data: DataConfig) -> Batch:
    """Shapes and dtypes."""
    shape = lambda dtype: jax.ShapeDtypeStruct((data.batch, data.length), dtype)
    return Batch(shape(np.int32), shape(np.int32), shape(np.float32))


def check_data(data: DataConfig, where: str) -> None:
    """Raises UserError where a needle document could not be made or would not fit into a row."""
    needles = data.needles
    if data.length < 2 or data.batch < 1:
        raise UserError(f"{where}: rows need 2 tokens or more, and a batch 1 row or more")
    if needles is None:
        return
    if not 0 < needles.share <= 1:
        raise UserError(f"{where}: needles.share={needles.share} is not in (0, 1]")
    most = needles.needles[1]
    least = most * (NEEDLE_LENGTH * (1 + needles.queries_per_needle) + 1) + 1
    if not least <= needles.lengths[0] <= needles.lengths[1] <= data.length:
        raise UserError(
            f"{where}: needles.lengths={needles.lengths} must be ascending and between {least}, "
            f"which {most} needles with their queries take, and the row length {data.length}"
        )


class BatchIterator:
    """Endless batches; the position is a small JSON value."""

    def __init__(self, iterator: grain.DatasetIterator):
        self._iterator = iterator

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        rows = next(self._iterator)
        return Batch(rows["tokens"], rows["tokens_segment_ids"], rows["weight"])

    def get_state(self) -> dict:
        return json.loads(json.dumps(self._iterator.get_state()))

    def set_state(self, state: dict) -> None:
        self._iterator.set_state(state)


def make_batches(data: DataConfig, corpus: Corpus, seed: int) -> BatchIterator:
    """Batches that `data`, the corpus and `seed` determine.

    Text is cut into pieces of at most a row, shuffled anew in every epoch, and mixed with needle
    documents; pieces are packed into rows, first fit, none of them cut.

    Raises:
      UserError: the text is empty or too short, or the tokenizer has no needle symbols.
    """
    documents = corpus.documents(data.text)
    sources, shares = [], []
    needles = data.needles
    if needles is None or needles.share < 1:
        pieces = _cut(documents, data.length)
        sources.append(
            grain.MapDataset.source(pieces)
            .seed(seed)
            .shuffle()
            .repeat()
            .map(lambda tokens: _element(tokens, data.text_weight))
        )
        shares.append(1.0 if needles is None else 1 - needles.share)
    if needles is not None:
        make = _needle_maker(data, documents, corpus, seed)
        sources.append(grain.MapDataset.range(_NEEDLE_DOCUMENTS).map(make))
        shares.append(needles.share)
    mixed = grain.MapDataset.mix(sources, shares) if len(sources) > 1 else sources[0]
    pieces = mixed.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    rows = grain.experimental.FirstFitPackIterDataset(
        pieces,
        length_struct={"tokens": data.length, "weight": data.length},
        num_packing_bins=_ROWS_PACKED_AT_ONCE,
        seed=seed,
    )
    return BatchIterator(iter(rows.batch(data.batch)))


def _cut(documents: list[np.ndarray], length: int) -> list[np.ndarray]:
    """Pieces of `length` tokens and the rest of each document; no piece of one token."""
    pieces = [d[start : start + length] for d in documents for start in range(0, len(d), length)]
    return [piece for piece in pieces if len(piece) > 1]


def _element(tokens: np.ndarray, text_weight: float, answer: np.ndarray | None = None) -> dict:
    weight = np.full(len(tokens), text_weight, np.float32)
    return {"tokens": tokens, "weight": weight if answer is None else weight + answer}


def _needle_maker(data: DataConfig, documents: list[np.ndarray], corpus: Corpus, seed: int):
    """index -> needle document, the same for an index and a seed in any process."""
    needles, end = data.needles, end_of_text(corpus.tokenizer)
    symbols = _symbols(corpus, needles)
    haystack = np.concatenate(documents)
    haystack = haystack[haystack != end]
    if len(haystack) < needles.lengths[1]:
        raise UserError(
            f"the text has {len(haystack)} tokens, fewer than a needle document of "
            f"{needles.lengths[1]}; give more text"
        )

    def make(index: int) -> dict:
        rng = np.random.default_rng((seed, index))
        count = int(rng.integers(*needles.needles, endpoint=True))
        asked = rng.permutation(np.repeat(np.arange(count), needles.queries_per_needle))
        length = int(rng.integers(*needles.lengths, endpoint=True)) - 1
        document = needle_document(
            symbols, haystack, rng, length=length, needles=count, asked=asked
        )
        answer = np.append(document.answer_T, False).astype(np.float32) * data.answer_weight
        return _element(np.append(document.tokens_T, np.int32(end)), data.text_weight, answer)

    return make


def _symbols(corpus: Corpus, needles: NeedleData) -> NeedleSymbols:
    try:
        symbols = needle_symbols(corpus.tokenizer)
    except ValueError as error:
        raise UserError(str(error)) from error
    if len(symbols.keys) < needles.needles[1]:
        raise UserError(
            f"the tokenizer has {len(symbols.keys)} key symbols, fewer than the "
            f"{needles.needles[1]} needles of a document"
        )
    return symbols

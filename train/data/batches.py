"""Packs documents into batches: shuffled, mixed, resumable, the same for any processes."""

import dataclasses
from collections.abc import Iterator
from typing import Protocol

import grain
import jax
import numpy as np

from hydrahead_jax.dataclass_json import RECORDED_IF_SET
from hydrahead_jax.errors import UserError
from hydrahead_jax.json_file import plain
from hydrahead_jax.token_ids import check_token_ids
from hydrahead_jax.vocabulary import Kept
from train.data.mqar import MqarData, check_mqar_data, mqar_row
from train.data.needles import NeedleData, check_needles
from train.data.packed_text import packed_text
from train.data.prepared.folder import PreparedText
from train.data.prepared.packing import Packing
from train.data.prepared.rows import RowBatches, calibration_stretches, open_folders
from train.data.text import Corpus, TextSource


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Describes the rows of a stage: their text, their packing, and the weights of the loss.

    Attributes:
      length: tokens of a row.
      batch: rows of a batch.
      text: plain text that fits into memory; also the haystack of needle documents.
      prepared: text of any size, in place of `text`.
      packing: how prepared text is packed. "best_fit" cuts only documents that are longer than a
        row and leaves some padding; "split" cuts at every end of a row and leaves none.
      needles: needle documents that are mixed in; None for plain text alone.
      mqar: documents of associative recall, in place of any text.
      text_weight: weight of every token in the next-token loss.
      answer_weight: weight that is added on the answers of needle documents and of recall.
    """

    length: int
    batch: int
    text: TextSource = TextSource()
    prepared: tuple[PreparedText, ...] = ()
    packing: Packing = "best_fit"
    needles: NeedleData | None = None
    mqar: MqarData | None = dataclasses.field(default=None, metadata=RECORDED_IF_SET)
    text_weight: float = 1.0
    answer_weight: float = 0.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Holds packed documents.

    Attributes:
      tokens_BT: int32.
      segment_ids_BT: document of each token within its row, from 1; 0 is padding.
      loss_weight_BT: weight of predicting this token; 0 on padding.
      teacher: the teacher's most probable tokens [B, T, K], where a stage reads them from a cache.
    """

    tokens_BT: jax.Array
    segment_ids_BT: jax.Array
    loss_weight_BT: jax.Array
    teacher: Kept | None = None


class Batches(Protocol):
    """Yields endless batches of numpy arrays.

    The position is a small JSON value. It is the same in every process, and for any number of
    processes.
    """

    def __iter__(self) -> Iterator[Batch]: ...

    def __next__(self) -> Batch: ...

    def get_state(self) -> dict: ...

    def set_state(self, state: dict) -> None: ...


def abstract_batch(data: DataConfig) -> Batch:
    """Returns the shapes and dtypes of a batch."""
    shape = lambda dtype: jax.ShapeDtypeStruct((data.batch, data.length), dtype)
    return Batch(shape(np.int32), shape(np.int32), shape(np.float32))


def check_data(data: DataConfig, where: str) -> None:
    """Raises UserError where the settings do not fit together; opens no file."""
    if data.length < 2 or data.batch < 1:
        raise UserError(f"{where}: rows need 2 tokens or more, and a batch 1 row or more")
    for text in data.prepared:
        if not 0 < text.weight < float("inf"):
            raise UserError(
                f"{where}: the weight {text.weight} of {text.folder} must be a positive number"
            )
    if data.mqar is not None:
        if data.needles is not None or data.prepared:
            raise UserError(
                f"{where}: rows of associative recall hold neither needles nor prepared text; "
                "leave out either `mqar` or those"
            )
        check_mqar_data(data.mqar, data.length, where)
    if data.needles is None:
        return
    if data.prepared:
        raise UserError(
            f"{where}: needle documents are made from `text`, not from `prepared` text; leave one "
            f"of needles and prepared out"
        )
    check_needles(data.needles, data.length, where)


def make_batches(
    data: DataConfig, corpus: Corpus | None, seed: int, rows: tuple[int, ...] | None = None
) -> Batches:
    """Makes the batches that `data`, the corpus and `seed` determine.

    Documents of `text` are cut into pieces of at most a row, shuffled anew in every epoch, and
    mixed with needle documents; pieces are packed into rows, first fit, none of them cut. Each
    process makes all of it and keeps its rows. Rows of prepared text are planned once and shuffled
    anew in every epoch; each process reads its own only.

    Args:
      corpus: all text; None where the rows hold none.
      rows: rows of each batch that are returned, in that order; all if None.

    Raises:
      UserError: the text is empty or too short, the tokenizer has no needle symbols, or prepared
        text cannot be read or is in another vocabulary.
    """
    rows = tuple(range(data.batch)) if rows is None else rows
    if data.mqar is not None:
        return _MqarBatches(data, seed, rows)
    if data.prepared:
        return _PreparedBatches(data, corpus, seed, rows)
    packed = packed_text(
        corpus.documents(data.text),
        corpus.tokenizer,
        seed,
        length=data.length,
        needles=data.needles,
        text_weight=data.text_weight,
        answer_weight=data.answer_weight,
    )
    return _TextBatches(iter(packed.batch(data.batch)), np.array(rows))


def calibration_tokens(data: DataConfig, corpus: Corpus, rows: int, length: int) -> np.ndarray:
    """Returns stretches that are spread evenly over the joined documents of the text.

    Returns:
      int32 [rows, length]; shorter where there is less text than that.

    Raises:
      UserError: as `make_batches`.
    """
    if data.prepared:
        folders = open_folders(data.prepared, corpus.vocabulary_checksum)
        tokens_BT = calibration_stretches(data.prepared, folders, rows, length)
        check_token_ids(tokens_BT, _known_ids(corpus), "prepared text")
        return tokens_BT
    tokens = np.concatenate(corpus.documents(data.text))
    length = min(length, len(tokens))
    starts = np.linspace(0, len(tokens) - length, rows).astype(int)
    return np.stack([tokens[start : start + length] for start in starts])


def _known_ids(corpus: Corpus) -> int:
    """Returns one more than the largest token id of the corpus."""
    return 1 + max(corpus.tokenizer.get_vocab().values())


class _TextBatches:
    """Selects rows of batches that every process makes completely."""

    def __init__(self, iterator: grain.DatasetIterator, rows: np.ndarray):
        self._iterator, self._rows = iterator, rows

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = next(self._iterator)
        names = ("tokens", "tokens_segment_ids", "weight")
        return Batch(*(batch[name][self._rows] for name in names))

    def get_state(self) -> dict:
        return plain(self._iterator.get_state())

    def set_state(self, state: dict) -> None:
        self._iterator.set_state(state)


class _PreparedBatches:
    """Makes batches from rows of prepared text."""

    def __init__(self, data: DataConfig, corpus: Corpus, seed: int, rows: tuple[int, ...]):
        self._rows = RowBatches(
            data.prepared,
            open_folders(data.prepared, corpus.vocabulary_checksum),
            length=data.length,
            packing=data.packing,
            batch=data.batch,
            rows=rows,
            seed=seed,
        )
        self._weight = np.float32(data.text_weight)
        self._known = _known_ids(corpus)
        self.get_state, self.set_state = self._rows.get_state, self._rows.set_state

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        rows = next(self._rows)
        check_token_ids(rows.tokens_BT, self._known, "prepared text")
        weight_BT = (rows.segment_ids_BT > 0) * self._weight
        return Batch(rows.tokens_BT, rows.segment_ids_BT, weight_BT)


class _MqarBatches:
    """Makes documents of associative recall from the number of the batch and of the row."""

    def __init__(self, data: DataConfig, seed: int, rows: tuple[int, ...]):
        self._data, self._seed, self._rows, self._next = data, seed, rows, 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        data, index = self._data, self._next
        made = [mqar_row(data.mqar, self._seed, index, row, data.length) for row in self._rows]
        tokens_BT, answer_BT = (np.stack(parts) for parts in zip(*made, strict=True))
        weight_BT = data.text_weight + data.answer_weight * answer_BT
        self._next += 1
        return Batch(tokens_BT, np.ones_like(tokens_BT), weight_BT.astype(np.float32))

    def get_state(self) -> dict:
        return {"batch": self._next}

    def set_state(self, state: dict) -> None:
        self._next = state["batch"]

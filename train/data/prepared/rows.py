"""Yields rows of prepared text in the order of training, the same for any number of processes."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import grain
import numpy as np

from hydrahead_jax.errors import UserError
from hydrahead_jax.local_path import local_path
from train.data.prepared.folder import PreparedFolder, PreparedText
from train.data.prepared.packing import Packing, Plan
from train.data.prepared.plans import plan_for

_THREADS = 4
_BATCHES_AHEAD = 8


class Rows(NamedTuple):
    """Holds rows of documents.

    Attributes:
      tokens_BT: int32.
      segment_ids_BT: int32, from 1 in each row; 0 is padding.
    """

    tokens_BT: np.ndarray
    segment_ids_BT: np.ndarray


def open_folders(texts: tuple[PreparedText, ...], vocabulary: str) -> list[PreparedFolder]:
    """Opens the folders.

    Args:
      vocabulary: checksum of the tokenizer's vocabulary.

    Raises:
      UserError: a folder cannot be read, or is in another vocabulary.
    """
    folders = [PreparedFolder(local_path(text.folder).absolute()) for text in texts]
    for folder in folders:
        folder.check_tokenizer(vocabulary)
    return folders


class RowBatches:
    """Yields endless batches; the position is the number of batches given so far.

    Row r of batch b is row b * batch + r of an order that the texts, the row length, the packing
    and the seed determine. In it, folders take turns by weight, and each epoch of a folder has all
    its rows in another order.
    """

    def __init__(
        self,
        texts: tuple[PreparedText, ...],
        folders: list[PreparedFolder],
        *,
        length: int,
        packing: Packing,
        batch: int,
        rows: tuple[int, ...],
        seed: int,
    ):
        """Reads only `rows` of each batch, in that order."""
        plans = [plan_for(folder, length, packing) for folder in folders]
        orders = [_order(index, plan.rows, seed) for index, plan in enumerate(plans)]
        weights = [text.weight for text in texts]
        order = grain.MapDataset.mix(orders, weights) if len(orders) > 1 else orders[0]
        reader = _Reader(folders, plans, order, length, batch, rows)
        self._batches = grain.MapDataset.source(reader)
        self._folders = folders
        self.set_state(self._state(0))

    def __iter__(self) -> Iterator[Rows]:
        return self

    def __next__(self) -> Rows:
        rows = next(self._iterator)
        self._given += 1
        return rows

    def get_state(self) -> dict:
        return self._state(self._given)

    def set_state(self, state: dict) -> None:
        """Goes to that position; raises UserError where the state belongs to other text."""
        for folder, checksum in zip(self._folders, state["prepared"], strict=True):
            if folder.checksum != checksum:
                raise UserError(
                    f"{folder.path} is not the text that the run began with; put that text back, "
                    f"or start a new run"
                )
        self._given = state["batches"]
        options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_BATCHES_AHEAD)
        self._iterator = iter(self._batches[self._given :].to_iter_dataset(options))

    def _state(self, given: int) -> dict:
        return {"batches": given, "prepared": [folder.checksum for folder in self._folders]}


def calibration_stretches(
    texts: tuple[PreparedText, ...], folders: list[PreparedFolder], rows: int, length: int
) -> np.ndarray:
    """Returns int32 [rows, length]: stretches that are spread evenly over each folder.

    The number of rows from a folder follows its weight. The length is at most that of the shortest
    folder.
    """
    length = min(length, *(folder.manifest["tokens"] for folder in folders))
    shares = np.cumsum([text.weight for text in texts])
    chosen = np.searchsorted(shares, (np.arange(rows) + 0.5) / rows * shares[-1])
    counts = np.bincount(chosen, minlength=len(folders)).tolist()
    pairs = zip(folders, counts, strict=True)
    return np.concatenate([_stretches(folder, count, length) for folder, count in pairs])


def _stretches(folder: PreparedFolder, rows: int, length: int) -> np.ndarray:
    starts = np.linspace(0, folder.manifest["tokens"] - length, rows).astype(int)
    found = [np.concatenate(folder.read(folder.stretch(start, length))) for start in starts]
    return np.array(found, np.int32).reshape(rows, length)


def _order(folder: int, rows: int, seed: int) -> grain.MapDataset:
    """Returns the endless order of (folder, row); every epoch has another order."""
    numbers = grain.MapDataset.range(rows).seed(seed).shuffle().repeat()
    return numbers.map(lambda row: (folder, row))


@dataclasses.dataclass(frozen=True, eq=False)
class _Reader:
    """Reads batches by number."""

    folders: list[PreparedFolder]
    plans: list[Plan]
    order: grain.MapDataset
    length: int
    batch: int
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.order) // self.batch

    def __getitem__(self, number: int) -> Rows:
        first = int(number) * self.batch
        places = [self.order[first + row] for row in self.rows]
        tokens_BT = np.zeros((len(places), self.length), np.int32)
        segment_ids_BT = np.zeros_like(tokens_BT)
        for index, (folder, plan) in enumerate(zip(self.folders, self.plans, strict=True)):
            mine = [(b, row) for b, (chosen, row) in enumerate(places) if chosen == index]
            if mine:
                _fill(tokens_BT, segment_ids_BT, folder, plan, mine)
        return Rows(tokens_BT, segment_ids_BT)


def _fill(
    tokens_BT: np.ndarray,
    segment_ids_BT: np.ndarray,
    folder: PreparedFolder,
    plan: Plan,
    places: list[tuple[int, int]],
) -> None:
    """Writes the plan's rows into the batch; `places` are (row of the batch, row of the plan)."""
    stretches = [plan.pieces[plan.first[row] : plan.first[row + 1]] for _, row in places]
    pieces = np.concatenate(stretches)
    documents = iter(folder.read(pieces))
    for (b, _), stretch in zip(places, stretches, strict=True):
        at = 0
        for segment in range(1, len(stretch) + 1):
            tokens = next(documents)
            tokens_BT[b, at : at + len(tokens)] = tokens
            segment_ids_BT[b, at : at + len(tokens)] = segment
            at += len(tokens)

"""Reads a folder of tokenised text: a manifest, lengths of documents, and shards of tokens.

A document lies in consecutive records of `RECORD_TOKENS` tokens, the last one shorter, so that a
piece of a long one is read without the rest.
"""

import dataclasses
import functools
import resource
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from hydrahead_jax.errors import UserError
from hydrahead_jax.json_file import read_json

FORMAT = 1
MANIFEST = "manifest.json"
LENGTHS = "lengths.npy"
RECORD_TOKENS = 8192
PIECE = np.dtype([("record", "<i8"), ("start", "<i4"), ("length", "<i4")])
"""Tokens of one document: the first record they lie in, where in it, and how many."""
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedText:
    """Names a folder of prepared text, and its weight among others.

    Attributes:
      folder: folder made by `python -m train prepare`.
      weight: weight of its rows beside those of the other folders; any positive scale.
    """

    folder: str
    weight: float = 1.0


class PreparedFolder:
    """Reads a folder of prepared text; any number of threads may use it.

    Attributes:
      path: path of the folder.
      manifest: the manifest that `prepare` wrote.
    """

    def __init__(self, path: Path):
        """Raises UserError where the folder is missing, unfinished, empty or damaged."""
        self.path = path
        if not path.is_dir():
            raise UserError(
                f"there is no prepared text {path}; make it by `python -m train prepare`"
            )
        if not (path / MANIFEST).is_file():
            raise UserError(
                f"{path} holds no finished text: it has no {MANIFEST}; run the `prepare` command "
                "of this folder again"
            )
        self.manifest = read_json(path / MANIFEST)
        if self.manifest.get("format") != FORMAT:
            raise UserError(f"{path} has another format; prepare it again with this version")
        if not self.manifest["documents"]:
            raise UserError(f"{path} holds no documents; prepare other text")
        self._shards = self.manifest["shards"]
        for shard in self._shards:
            file = path / shard["name"]
            if not file.is_file() or file.stat().st_size != shard["bytes"]:
                raise UserError(
                    f"{file} is missing or damaged; delete the folder and prepare it again"
                )
        self._ends = np.cumsum([shard["records"] for shard in self._shards])
        self._dtype = np.dtype(self.manifest["dtype"])
        self._reader = functools.lru_cache(_most_open_files())(self._open)

    @property
    def checksum(self) -> str:
        """Returns the checksum of all tokens and of the ends of documents."""
        return self.manifest["checksum"]

    def check_tokenizer(self, checksum: str) -> None:
        """Raises UserError where the text is in another vocabulary.

        Args:
          checksum: `vocabulary_checksum` of the tokenizer in use.
        """
        if checksum != self.manifest["tokenizer"]["vocabulary"]:
            raise UserError(
                f"{self.path} was prepared with another tokenizer than the model's; prepare the "
                f"text again with --tokenizer of this model"
            )

    def lengths(self) -> np.ndarray:
        """Maps the file of document lengths: uint32 tokens of each, the end of text included."""
        return np.load(self.path / LENGTHS, mmap_mode="r")

    def read(self, pieces: np.ndarray) -> list[np.ndarray]:
        """Reads the tokens of each of the pieces (PIECE)."""
        first = pieces["record"]
        counts = (pieces["start"] + pieces["length"] - 1) // RECORD_TOKENS + 1
        ends = np.cumsum(counts)
        records = self._read_records(np.repeat(first - ends + counts, counts) + np.arange(ends[-1]))
        found = []
        for start, length, count, end in zip(
            pieces["start"].tolist(),
            pieces["length"].tolist(),
            counts.tolist(),
            ends.tolist(),
            strict=True,
        ):
            tokens = records[end - 1] if count == 1 else np.concatenate(records[end - count : end])
            found.append(tokens[start : start + length])
        return found

    def stretch(self, start: int, length: int) -> np.ndarray:
        """Returns the pieces of tokens `start` to `start + length` of the joined documents."""
        lengths = self.lengths()
        ends = np.cumsum(lengths, dtype=np.int64)
        first, last = np.searchsorted(ends, [start, start + length - 1], side="right")
        documents = np.arange(first, last + 1)
        begins = ends[documents] - lengths[documents]
        offsets = np.maximum(start - begins, 0)
        stops = np.minimum(start + length, ends[documents]) - begins
        return document_pieces(lengths, documents, offsets, stops - offsets)

    def _read_records(self, records: np.ndarray) -> list[np.ndarray]:
        shards = np.searchsorted(self._ends, records, side="right")
        found: list = [None] * len(records)
        for shard in np.unique(shards).tolist():
            [where] = np.nonzero(shards == shard)
            first = self._ends[shard] - self._shards[shard]["records"]
            data = self._read_shard(shard, (records[where] - first).tolist())
            for index, raw in zip(where.tolist(), data, strict=True):
                found[index] = np.frombuffer(raw, self._dtype)
        return found

    def _read_shard(self, shard: int, records: list[int]) -> list[bytes]:
        try:
            return self._reader(shard).read(records)
        except RuntimeError as error:
            raise UserError(
                f"cannot read {self.path}: {error}; delete the folder and prepare it again"
            ) from error

    def _open(self, shard: int) -> ArrayRecordReader:
        return ArrayRecordReader(
            str(self.path / self._shards[shard]["name"]),
            options=_READER_OPTIONS,
            file_reader_buffer_size=32768,
        )


def _most_open_files() -> int:
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1024 if allowed == resource.RLIM_INFINITY else max(16, min(1024, allowed // 4))


def document_pieces(
    lengths: np.ndarray, documents: np.ndarray, offsets: np.ndarray, sizes: np.ndarray
) -> np.ndarray:
    """Returns pieces (PIECE) of `sizes` tokens, from `offsets` on, of each of `documents`.

    Args:
      lengths: tokens of every document of the folder.
    """
    records = -(-lengths.astype(np.int64) // RECORD_TOKENS)
    before = np.cumsum(records) - records
    pieces = np.empty(len(documents), PIECE)
    pieces["record"] = before[documents] + offsets // RECORD_TOKENS
    pieces["start"] = offsets % RECORD_TOKENS
    pieces["length"] = sizes
    return pieces

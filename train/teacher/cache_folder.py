"""Stores a cache on disk: its identity, and blocks of steps, one file per process and block."""

import bisect
import dataclasses
import functools
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader

from hydrahead_jax import resumable
from hydrahead_jax.config import ModelConfig
from hydrahead_jax.dataclass_json import read_as, to_plain, untagged
from hydrahead_jax.errors import UserError
from hydrahead_jax.json_file import read_json
from hydrahead_jax.local_path import local_path
from train.files.run_folder import write_json
from train.stage.stage import Stage
from train.teacher.cache_record import RowFormat

FORMAT = 1
MANIFEST = "manifest.json"
_BLOCKS = "blocks"
_OPEN_FILES = 64
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """Describes a file of a block, which holds some rows of the batch of each step.

    Attributes:
      name: name of the file.
      rows: rows of each batch that it holds, ascending.
      bytes: size of the file.
    """

    name: str
    rows: tuple[int, ...]
    bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """Describes consecutive steps that were cached together.

    Attributes:
      first: first step, counted in the stage from 0.
      steps: number of steps.
      parts: files that have all rows between them.
      state: position in the data after the block.
    """

    first: int
    steps: int
    parts: tuple[Part, ...]
    state: Any


def identity(stage: Stage, seed: int, teacher: ModelConfig, checksum: int) -> dict:
    """Returns what a cache was made of, as JSON.

    Args:
      stage: the stage that reads it.
      seed: seed of the run; with the stage's name it determines the order of the data.
      teacher: config of the teacher.
      checksum: checksum of the teacher's parameters.
    """
    return {
        "format": FORMAT,
        "teacher": {"checksum": checksum, "vocab": teacher.vocab},
        "stage": stage.name,
        "seed": seed,
        "data": to_plain(stage.data),
        "tokens": stage.teacher_cache.tokens,
    }


class CacheFolder:
    """Reads the complete blocks of a cache.

    Attributes:
      path: path of the folder.
      blocks: complete blocks, the first steps first.
    """

    def __init__(self, path: Path, found: dict):
        """Opens the folder; `found` is its identity."""
        self.path = path
        self.format = RowFormat(found["data"]["length"], found["tokens"], found["teacher"]["vocab"])
        self.blocks: list[Block] = []
        while (block := _read_block(path, self.steps)) is not None:
            self.blocks.append(block)
        self._reader = functools.lru_cache(_OPEN_FILES)(self._open)

    @property
    def steps(self) -> int:
        """Returns the number of steps that can be read."""
        return self.blocks[-1].first + self.blocks[-1].steps if self.blocks else 0

    def read(self, step: int, rows: tuple[int, ...]) -> list[bytes]:
        """Reads the records of those rows of a step's batch."""
        firsts = [block.first for block in self.blocks]
        block = self.blocks[bisect.bisect_right(firsts, step) - 1]
        found = {}
        for part in block.parts:
            wanted = [row for row in rows if row in part.rows and row not in found]
            base = (step - block.first) * len(part.rows)
            at = [base + part.rows.index(row) for row in wanted]
            if at:
                found |= dict(zip(wanted, self._reader(part.name).read(at), strict=True))
        return [found[row] for row in rows]

    def _open(self, name: str) -> ArrayRecordReader:
        return ArrayRecordReader(str(self.path / name), _READER_OPTIONS)


def open_for_writing(path: Path, wanted: dict) -> None:
    """Makes the folder, or checks that it is the same cache; call it on one process.

    Raises:
      UserError: the folder holds another cache, or something else.
    """
    advice = "choose another teacher_cache.folder"
    resumable.open_folder(path, MANIFEST, wanted, holds="teacher cache", advice=advice)
    (path / _BLOCKS).mkdir(exist_ok=True)


def open_for_reading(stage: Stage, wanted: dict) -> CacheFolder:
    """Opens the cache that a stage reads.

    Raises:
      UserError: it is missing, of another teacher or other data, or has too few steps.
    """
    path = local_path(stage.teacher_cache.folder)
    where = f"stage {stage.name!r}: the teacher cache {path}"
    if not (path / MANIFEST).is_file():
        raise UserError(f"{where} is not there; make it by `python -m train cache-teacher`")
    found = read_json(path / MANIFEST)
    wrong = resumable.differences(found, wanted)
    if wrong:
        raise UserError(
            f"{where} does not fit this run: {wrong[0]}; make one for this run by "
            f"`python -m train cache-teacher` in another folder"
        )
    folder = CacheFolder(path, found)
    if folder.steps < stage.steps:
        raise UserError(
            f"{where} has {folder.steps} complete steps and the stage takes {stage.steps}; run "
            "`python -m train cache-teacher` again to finish it"
        )
    return folder


def write_block(path: Path, block: Block) -> None:
    """Records that a block is complete; call it when its files are written."""
    write_json(_block_file(path, block.first), to_plain(block, untagged))


def part_name(first: int, process: int) -> str:
    return f"steps-{first:07d}-{process:04d}.arrayrecord"


def _block_file(path: Path, first: int) -> Path:
    return path / _BLOCKS / f"{first:07d}.json"


def _read_block(path: Path, first: int) -> Block | None:
    if not _block_file(path, first).is_file():
        return None
    block = read_as(Block, _block_file(path, first), untagged)
    for part in block.parts:
        file = path / part.name
        if not file.is_file() or file.stat().st_size != part.bytes:
            return None
    return block

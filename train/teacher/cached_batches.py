"""Adds the cached teacher outputs to batches."""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.errors import UserError
from hydrahead_jax.json_file import read_json
from hydrahead_jax.local_path import local_path
from hydrahead_jax.vocabulary import Kept
from train.data.batches import Batch, Batches, make_batches
from train.data.text import Corpus
from train.stage.stage import Stage, stage_seed
from train.teacher.cache_folder import MANIFEST, CacheFolder, identity, open_for_reading
from train.teacher.cache_record import row_checksums


def abstract_kept(stage: Stage) -> Kept:
    """Returns the shapes and dtypes of what a batch takes from the cache."""
    rows = (stage.data.batch, stage.data.length)
    shape = lambda dtype, *more: jax.ShapeDtypeStruct((*rows, *more), dtype)
    tokens = stage.teacher_cache.tokens
    return Kept(shape(np.int32, tokens), shape(np.float16, tokens), shape(np.float32))


def check_cache(
    stage: Stage, seed: int, teacher: ModelConfig, checksum: int, corpus: Corpus
) -> None:
    """Raises UserError where a stage could not read its cache, or it is of other text.

    Args:
      stage: the stage that reads it.
      seed: seed of the run.
      teacher: config of the teacher.
      checksum: checksum of its parameters.
      corpus: text that the stage reads.
    """
    open_for_reading(stage, identity(stage, seed, teacher, checksum))
    batches = make_batches(stage.data, corpus, stage_seed(seed, stage.name), (0,))
    next(CachedBatches(batches, stage, (0,)))


class CachedBatches:
    """Yields batches of numpy arrays whose `teacher` is read from the stage's cache.

    The position includes the number of steps.
    """

    def __init__(self, batches: Batches, stage: Stage, rows: tuple[int, ...]):
        """Takes the batches, and `rows`, the rows of every batch that `batches` gives."""
        path = local_path(stage.teacher_cache.folder)
        self._folder = CacheFolder(path, read_json(path / MANIFEST))
        self._batches, self._rows, self._step = batches, rows, 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = next(self._batches)
        records = self._folder.read(self._step, self._rows)
        kept, checksums = zip(*map(self._folder.format.decode, records), strict=True)
        if list(checksums) != row_checksums(batch):
            raise UserError(
                f"the teacher cache {self._folder.path} was made of other text: step "
                f"{self._step + 1} has other tokens now; make it again in another folder"
            )
        self._step += 1
        return dataclasses.replace(batch, teacher=Kept(*map(np.stack, zip(*kept, strict=True))))

    def get_state(self) -> dict:
        return {"batches": self._batches.get_state(), "step": self._step}

    def set_state(self, state: dict) -> None:
        self._batches.set_state(state["batches"])
        self._step = state["step"]

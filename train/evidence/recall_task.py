"""Describes what small models learn from scratch to recall, and how that is measured."""

import dataclasses

import numpy as np

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.errors import UserError
from hydrahead_jax.evals.mqar import MqarSymbols, check_mqar, mqar_documents
from train.stage.stage import Stage, check_stages


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecallTask:
    """Describes a task of associative recall, or of needles; its symbols say which.

    Attributes:
      name: name of the task, and of its folder.
      model: the models, but for their last layer, which is each variant's.
      stages: stages of training.
      lengths: lengths of the documents of the evaluation; windows are changed at the first.
      counts: how many pairs such a document has; those that do not fit a length are left out there.
      documents: documents for each length and count.
      batch: documents a pass.
    """

    name: str
    model: ModelConfig
    stages: tuple[Stage, ...]
    lengths: tuple[int, ...]
    counts: tuple[int, ...]
    documents: int = 128
    batch: int = 64

    @property
    def symbols(self) -> MqarSymbols:
        return self.stages[-1].data.mqar.symbols

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def fitting_counts(self, length: int) -> tuple[int, ...]:
        """Returns the numbers of pairs whose documents fit the length."""
        return tuple(count for count in self.counts if 4 * count <= length)

    def held_out(self, length: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns tokens and answers of documents that no training has seen."""
        return mqar_documents(self.symbols, 0, documents=self.documents, pairs=count, length=length)


def check_task(task: RecallTask) -> None:
    """Raises UserError where the task cannot be trained or measured."""
    where = f"task {task.name!r}"
    check_stages(task.stages, task.model.max_length)
    if not task.lengths or not task.counts or min(task.documents, task.batch) < 1:
        raise UserError(
            f"{where}: it needs at least one length, count, document and row a batch; set "
            "lengths, counts, documents and batch"
        )
    for stage in task.stages:
        if stage.data.mqar is None or stage.data.mqar.symbols.vocab != task.model.vocab:
            raise UserError(
                f"{where}: stage {stage.name!r} must have data.mqar, whose filler, keys and values "
                f"are the model's vocabulary of {task.model.vocab} tokens"
            )
    for length in task.lengths:
        for count in task.fitting_counts(length):
            check_mqar(task.symbols, count, length, where)

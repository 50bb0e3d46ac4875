"""Describes what small models learn from scratch to recall, and how that is measured."""

import dataclasses

import numpy as np

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.errors import UserError
from hydrahead_jax.evals.mqar import check_mqar, mqar_documents
from hydrahead_jax.evals.niah import needle_document, needle_symbols
from hydrahead_jax.local_path import local_path
from train.data.text import Corpus, load_corpus
from train.stage.stage import Stage, check_stages


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecallTask:
    """Describes a task: associative recall, or needles in text, as the last stage's data says.

    Attributes:
      name: name of the task, and of its folder.
      model: the models, but for their last layer, which is each variant's.
      stages: stages of training.
      lengths: lengths of the documents of the evaluation; windows are changed at the first.
      counts: how many pairs, or needles, such a document has.
      documents: documents for each length and count.
      batch: documents a pass.
      tokenizer: folder of the tokenizer of text; None for associative recall, which has no text.
    """

    name: str
    model: ModelConfig
    stages: tuple[Stage, ...]
    lengths: tuple[int, ...]
    counts: tuple[int, ...]
    documents: int = 128
    batch: int = 64
    tokenizer: str | None = None

    @property
    def mqar(self):
        return self.stages[-1].data.mqar

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)


def check_task(task: RecallTask) -> None:
    """Raises UserError where the task cannot be trained or measured."""
    check_stages(task.stages, task.model.max_length)
    if not task.lengths or not task.counts or min(task.documents, task.batch) < 1:
        raise UserError(
            f"task {task.name!r}: it needs at least one length, count, document and row a batch; "
            "set lengths, counts, documents and batch"
        )
    if (task.tokenizer is None) != (task.mqar is not None):
        raise UserError(
            f"task {task.name!r}: associative recall has no text, and needles have; set either "
            "data.mqar of its stages or tokenizer"
        )
    if task.mqar is None:
        return
    if task.model.vocab != task.mqar.symbols.vocab:
        raise UserError(
            f"task {task.name!r}: filler, keys and values are {task.mqar.symbols.vocab} tokens, "
            f"and the model has {task.model.vocab}; set model.vocab to their number"
        )
    for length in task.lengths:
        for count in fitting_counts(task, length):
            check_mqar(task.mqar.symbols, count, length, f"task {task.name!r}")


def fitting_counts(task: RecallTask, length: int) -> tuple[int, ...]:
    """Returns the numbers of pairs or needles of which four times as many tokens fit the length."""
    return tuple(count for count in task.counts if 4 * count <= length)


def task_corpus(task: RecallTask) -> Corpus | None:
    """Returns the text of a task; None where it has none."""
    if task.tokenizer is None:
        return None
    return load_corpus(local_path(task.tokenizer) / "tokenizer.json", task.model)


def held_out_documents(
    task: RecallTask, corpus: Corpus | None, length: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens and answers of documents that no training has seen, each [documents, T].

    A document of associative recall asks for every pair, one of needles for one of them.
    """
    size = {"documents": task.documents, "length": length}
    if task.mqar is not None:
        return mqar_documents(task.mqar.symbols, 0, pairs=count, **size)
    symbols = needle_symbols(corpus.tokenizer)
    haystack = corpus.haystack(task.stages[-1].data.text, "held_out").tokens
    made = [
        needle_document(
            symbols,
            haystack,
            np.random.default_rng((length, count, i)),
            length=length,
            needles=count,
        )
        for i in range(task.documents)
    ]
    return np.stack([d.tokens_T for d in made]), np.stack([d.answer_T for d in made])

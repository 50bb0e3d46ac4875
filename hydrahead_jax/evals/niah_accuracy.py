"""Measures how often a model retrieves a needle."""

from collections.abc import Collection

import numpy as np
from tokenizers import Tokenizer

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.evals.haystack import Haystack
from hydrahead_jax.evals.needle_questions import RULER_REPLY, Questions, needle_questions
from hydrahead_jax.evals.ruler import RulerTask
from hydrahead_jax.evals.template import Template
from hydrahead_jax.generate import generate
from hydrahead_jax.mixers import HeadEdit

SINGLE_NEEDLES = 1
MULTIKEY_NEEDLES = 8


def niah_accuracy(
    config: ModelConfig,
    params: dict,
    tokenizer: Tokenizer,
    haystack: Haystack | np.ndarray,
    *,
    length: int,
    needles: int = SINGLE_NEEDLES,
    task: RulerTask | None = None,
    template: Template = "auto",
    documents: int = 64,
    seed: int = 0,
    reply: int = RULER_REPLY,
    stops: Collection[int] = (),
    batch: int = 16,
    prefill_chunk: int | None = 256,
    edits: dict[int, HeadEdit] | None = None,
) -> float:
    """Returns the share of documents that a model answers.

    The model reads a document up to its answer and continues greedily.

    Args:
      config: of the model; `length` may exceed its trained length.
      params: of the model.
      tokenizer: of the model.
      haystack: text that the model was not trained on; see `needle_questions`.
      length: see `needle_questions`.
      needles: see `needle_questions`.
      task: see `needle_questions`.
      template: see `needle_questions`.
      documents: see `needle_questions`.
      seed: see `needle_questions`.
      reply: see `needle_questions`.
      stops: see `needle_questions`.
      batch: documents a pass.
      prefill_chunk: see `generate`.
      edits: see `generate`.

    Raises:
      UserError: a document cannot be made.
    """
    questions = needle_questions(
        tokenizer,
        haystack,
        length=length,
        needles=needles,
        task=task,
        template=template,
        documents=documents,
        seed=seed,
        reply=reply,
        stops=stops,
    )
    return share_answered(
        config, params, questions, batch=batch, prefill_chunk=prefill_chunk, edits=edits
    )


def share_answered(
    config: ModelConfig,
    params: dict,
    questions: Questions,
    *,
    batch: int = 16,
    prefill_chunk: int | None = 256,
    edits: dict[int, HeadEdit] | None = None,
) -> float:
    """Computes `niah_accuracy` on questions that are made already."""
    documents = len(questions.prompts)
    longest = max(len(prompt) for prompt in questions.prompts)
    right = 0
    for start in range(0, documents, batch):
        rows = range(start, start + batch)
        replies = generate(
            config,
            params,
            [questions.prompts[row % documents].tolist() for row in rows],
            max_new_tokens=questions.new_tokens,
            stop_token=questions.stops,
            prefill_chunk=prefill_chunk if prefill_chunk and prefill_chunk < longest else None,
            beyond_trained_length=True,
            edits=edits,
        )
        answered = [row for row in rows if row < documents]
        right += sum(questions.is_right[row](replies[row - start]) for row in answered)
    return right / documents

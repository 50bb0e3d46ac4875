"""Measures how often a model retrieves a needle."""

from hydrahead_jax.cache import KVFormats
from hydrahead_jax.config import ModelConfig
from hydrahead_jax.evals.needle_questions import Questions
from hydrahead_jax.generate import generate
from hydrahead_jax.mixers import HeadEdit


def niah_accuracy(
    config: ModelConfig,
    params: dict,
    questions: Questions,
    *,
    batch: int = 16,
    prefill_chunk: int | None = 256,
    edits: dict[int, HeadEdit] | None = None,
    kv_cache: KVFormats = None,
) -> float:
    """Returns the share of documents that a model answers.

    The model reads a document up to its answer and continues greedily.

    Args:
      config: of the model; a document may be longer than its trained length.
      params: of the model.
      questions: see `needle_questions`; made of text that the model was not trained on.
      batch: documents a pass.
      prefill_chunk: see `generate`.
      edits: see `generate`.
      kv_cache: see `generate`.
    """
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
            kv_cache=kv_cache,
        )
        answered = [row for row in rows if row < documents]
        right += sum(questions.is_right[row](replies[row - start]) for row in answered)
    return right / documents

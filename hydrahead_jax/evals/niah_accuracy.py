"""How often a model retrieves a needle."""

import numpy as np
from tokenizers import Tokenizer

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.evals.niah import VALUE_LENGTH, needle_document, needle_symbols
from hydrahead_jax.generate import generate

SINGLE_NEEDLES = 1
MULTIKEY_NEEDLES = 8


def niah_accuracy(
    config: ModelConfig,
    params: dict,
    tokenizer: Tokenizer,
    haystack_tokens: np.ndarray,
    *,
    length: int,
    needles: int,
    documents: int = 64,
    seed: int = 0,
    batch: int = 16,
    prefill_chunk: int | None = 256,
) -> float:
    """The share of documents whose answer is generated exactly, all its value tokens.

    The model reads a document up to the key that is asked for and continues greedily.

    Args:
      config: of the model; `length` may exceed its trained length.
      params: of the model.
      tokenizer: with needle symbols.
      haystack_tokens: text that the model was not trained on.
      length: tokens of a document, answer included.
      needles: 1 is niah_single, more is niah_multikey.
      documents: how many.
      seed: with `length` and `needles` it determines the documents, for any model.
      batch: documents a pass.
      prefill_chunk: see `generate`.

    Raises:
      UserError: the tokenizer has no needle symbols, or a document cannot be made.
    """
    symbols = needle_symbols(tokenizer)
    haystack_tokens = np.asarray(haystack_tokens, np.int32)
    rng = np.random.default_rng([seed, length, needles])
    make = lambda: needle_document(symbols, haystack_tokens, rng, length=length, needles=needles)
    tokens_XT = np.stack([make().tokens_T for _ in range(documents)])
    prompts_XT, answers_XW = np.split(tokens_XT, [length - VALUE_LENGTH], axis=1)
    correct = 0
    for start in range(0, documents, batch):
        rows = np.arange(start, start + batch)
        replies = generate(
            config,
            params,
            prompts_XT[rows % documents],
            max_new_tokens=VALUE_LENGTH,
            prefill_chunk=prefill_chunk if prefill_chunk and prefill_chunk < length else None,
            beyond_trained_length=True,
        )
        exact_B = np.all(np.array(replies) == answers_XW[rows % documents], axis=1)
        correct += int(np.sum(exact_B[rows < documents]))
    return correct / documents

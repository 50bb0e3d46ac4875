"""Measures what formats cost where tokens are read through the cache: loss, KL and needles."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from hydrahead_jax.cache import LayerFormats
from hydrahead_jax.config import ModelConfig
from hydrahead_jax.errors import UserError
from hydrahead_jax.evals import Haystack, needle_questions, niah_accuracy
from hydrahead_jax.evals.needle_questions import Questions
from hydrahead_jax.kv_quality.next_token import next_token
from hydrahead_jax.kv_quality.settings import KVReportSettings
from hydrahead_jax.resumable import cached

Documents = dict[tuple[str, int], Questions]


def measure_through_cache(
    config: ModelConfig,
    params: dict,
    tokens_XT: np.ndarray,
    documents: Documents,
    formats: Mapping[str, LayerFormats],
    settings: KVReportSettings,
    *,
    folder: Path,
    progress: Callable[[str, int, int], None],
) -> dict[str, dict]:
    """Returns for each format what `next_token` returns, and {kind: {str(length): accuracy}}.

    Each number is saved as it is made.

    Args:
      config: of the model.
      params: of the model.
      tokens_XT: stretches of text.
      documents: result of `needle_documents`.
      formats: the format of each layer, by name.
      settings: what to measure.
      folder: of the results.
      progress: called with a part's name, what is done of it and what there is.
    """
    found = {}
    for done, (name, one) in enumerate(formats.items(), start=1):
        compute = lambda one=one: next_token(config, params, tokens_XT, one, batch=settings.batch)
        found[name] = cached(folder / "text" / f"{name}.json", {"format": repr(one)}, compute)
        progress("text loss through the cache", done, len(formats))
    done, total = 0, len(formats) * len(documents)
    for (kind, length), questions in documents.items():
        for name, one in formats.items():
            accuracy = lambda one=one, questions=questions: {
                "accuracy": niah_accuracy(
                    config,
                    params,
                    questions,
                    batch=settings.batch,
                    prefill_chunk=settings.prefill_chunk,
                    kv_cache=one,
                )
            }
            path = folder / "needles" / f"{name}_{kind}_{length}.json"
            of = cached(path, {"format": repr(one)}, accuracy)
            found[name].setdefault(kind, {})[str(length)] = of["accuracy"]
            progress("needles", done := done + 1, total)
    return found


def needle_documents(
    config: ModelConfig,
    tokenizer: Tokenizer,
    haystack: Haystack,
    settings: KVReportSettings,
    stops,
) -> Documents:
    """Returns the documents of each kind and length; raises UserError where they cannot be made."""
    longest = config.max_length
    lengths = settings.needle_lengths or (longest, 2 * longest, 4 * longest)
    made = {}
    for length in lengths:
        for kind, needles in (("niah_single", 1), ("niah_multikey", settings.needles)):
            try:
                made[kind, length] = needle_questions(
                    tokenizer,
                    haystack,
                    length=length,
                    needles=needles,
                    template=settings.template,
                    documents=settings.documents,
                    seed=settings.seed,
                    reply=settings.reply,
                    stops=stops,
                )
            except UserError as error:
                raise UserError(f"{kind}: {error}") from error
    return made

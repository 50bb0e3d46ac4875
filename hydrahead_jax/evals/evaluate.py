"""Runs all evaluations of one model."""

import dataclasses
import itertools
from collections.abc import Callable, Collection

import numpy as np
from tokenizers import Tokenizer

from hydrahead_jax.cache import check_names, layer_formats
from hydrahead_jax.config import ModelConfig
from hydrahead_jax.dataclass_json import RECORDED_IF_SET
from hydrahead_jax.errors import UserError
from hydrahead_jax.evals.haystack import Haystack
from hydrahead_jax.evals.needle_questions import RULER_REPLY, needle_questions
from hydrahead_jax.evals.niah_accuracy import niah_accuracy
from hydrahead_jax.evals.ruler import RULER_TASKS
from hydrahead_jax.evals.template import Template, family
from hydrahead_jax.evals.text_loss import check_text, text_loss
from hydrahead_jax.token_ids import check_tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """Says what to measure.

    Attributes:
      lengths: lengths of the needle documents; the first is also the length of the text windows.
      template: the family of the needle documents; "auto" chooses it by the tokenizer.
      documents: needle documents for each length and kind.
      needles: needles of a niah_multikey document that is made of symbols.
      reply: tokens of a reply to RULER's documents, which count towards their length.
      text_windows: stretches of text for the loss.
      batch: documents or windows per pass.
      prefill_chunk: prompt tokens per pass; bounds memory.
      seed: seed of the documents.
      kv_cache: format of the KV cache, such as "ultraquant", or a list with one for each layer; the
        text loss is then that of decode steps. None stores keys and values as given.
    """

    lengths: tuple[int, ...]
    template: Template = "auto"
    documents: int = 64
    needles: int = 8
    reply: int = RULER_REPLY
    text_windows: int = 32
    batch: int = 16
    prefill_chunk: int | None = 256
    seed: int = 0
    kv_cache: str | tuple[str | None, ...] | None = dataclasses.field(
        default=None, metadata=RECORDED_IF_SET
    )

    def __post_init__(self):
        counts = (self.documents, self.needles, self.reply, self.text_windows, self.batch)
        if not self.lengths or min(counts) < 1:
            raise UserError(
                "an evaluation needs at least one length, and at least one document, needle, "
                f"token of reply, text window and row a batch; it has {self}"
            )
        check_names(self.kv_cache)


def evaluate(
    config: ModelConfig,
    params: dict,
    tokenizer: Tokenizer,
    haystack: Haystack | np.ndarray,
    settings: EvalSettings,
    *,
    stops: Collection[int] = (),
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> dict:
    """Measures needle retrieval at every length, and the loss on text.

    Args:
      config: of the model.
      params: of the model.
      tokenizer: of the model.
      haystack: held-out text, for the documents and for the loss; tokens alone are enough where
        documents are made of symbols.
      settings: what to measure.
      stops: tokens that end a reply, see `needle_questions`.
      progress: called after each part with its name, the parts done and the parts in all.

    Returns:
      The results as JSON: "niah_single" and "niah_multikey", each {str(length): accuracy};
      with RULER's documents each of its tasks too, of which these two are means; "text_loss" in
      nats per token, and "text_loss_by_position", {"first-last": loss}.

    Raises:
      UserError: some document or text window cannot be made, the tokenizer is of another model, or
        the model cannot have that KV cache; before anything is computed.
    """
    check_tokenizer(tokenizer, config.vocab)
    kv_formats = layer_formats(config, settings.kv_cache)
    haystack = Haystack.of(haystack)
    kinds, asked = _kinds(tokenizer, settings), {}
    common = {"documents": settings.documents, "seed": settings.seed, "reply": settings.reply}
    for kind, length in itertools.product(kinds, settings.lengths):
        how = {"length": length, "stops": stops, **common, **kinds[kind]}
        try:
            asked[kind, length] = needle_questions(tokenizer, haystack, **how)
        except UserError as error:
            raise UserError(f"{kind}: {error}") from error
    check_text(haystack.tokens, settings.lengths[0], config.vocab)
    report = {kind: {} for kind in kinds}
    for done, ((kind, length), questions) in enumerate(asked.items(), start=1):
        report[kind][str(length)] = niah_accuracy(
            config,
            params,
            questions,
            batch=settings.batch,
            prefill_chunk=settings.prefill_chunk,
            kv_cache=kv_formats,
        )
        progress(f"{kind} {length}", done, len(asked) + 1)
    loss = text_loss(
        config,
        params,
        haystack.tokens,
        length=settings.lengths[0],
        windows=settings.text_windows,
        batch=settings.batch,
        kv_cache=kv_formats,
    )
    progress("text_loss", len(asked) + 1, len(asked) + 1)
    return {
        **_means(report, settings.lengths),
        **report,
        "text_loss": loss.mean,
        "text_loss_by_position": loss.by_position,
    }


def _kinds(tokenizer: Tokenizer, settings: EvalSettings) -> dict[str, dict]:
    """Returns the arguments of `needle_questions` for each kind of document."""
    if family(settings.template, tokenizer) == "ruler":
        return {name: {"task": task} for name, task in RULER_TASKS.items()}
    needles = {"niah_single": 1, "niah_multikey": settings.needles}
    return {kind: {"template": "symbols", "needles": count} for kind, count in needles.items()}


def _means(report: dict[str, dict[str, float]], lengths: tuple[int, ...]) -> dict:
    """Returns the mean of all kinds that begin with niah_single, and with niah_multikey."""
    means = {}
    for prefix in ("niah_single", "niah_multikey"):
        of = [accuracies for kind, accuracies in report.items() if kind.startswith(prefix)]
        means[prefix] = {str(n): float(np.mean([kind[str(n)] for kind in of])) for n in lengths}
    return means

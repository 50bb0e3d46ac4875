"""One model, all evaluations."""

import dataclasses
from collections.abc import Callable

import numpy as np
from tokenizers import Tokenizer

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.errors import UserError
from hydrahead_jax.evals.niah import needle_document, needle_symbols
from hydrahead_jax.evals.niah_accuracy import MULTIKEY_NEEDLES, SINGLE_NEEDLES, niah_accuracy
from hydrahead_jax.evals.text_loss import text_loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """Attributes:
    lengths: of the needle documents; the first is also the length of the text windows.
    documents: needle documents for each length and kind.
    needles: of niah_multikey.
    text_windows: stretches of text for the loss.
    batch: documents or windows a pass.
    prefill_chunk: prompt tokens a pass; bounds memory.
    seed: of the documents.
    """

    lengths: tuple[int, ...]
    documents: int = 64
    needles: int = MULTIKEY_NEEDLES
    text_windows: int = 32
    batch: int = 16
    prefill_chunk: int | None = 256
    seed: int = 0

    def __post_init__(self):
        counts = (self.documents, self.needles, self.text_windows, self.batch)
        if not self.lengths or min(counts) < 1:
            raise UserError(
                "an evaluation needs at least one length, and at least one document, needle, text "
                f"window and row a batch; it has {self}"
            )


def evaluate(
    config: ModelConfig,
    params: dict,
    tokenizer: Tokenizer,
    haystack_tokens: np.ndarray,
    settings: EvalSettings,
    *,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> dict:
    """Needle retrieval at every length, and the loss on text.

    Args:
      config: of the model.
      params: of the model.
      tokenizer: with needle symbols.
      haystack_tokens: held-out text, for the documents and for the loss.
      settings: what to measure.
      progress: called after each part with its name, the parts done and the parts in all.

    Returns:
      As it stands in JSON: "niah_single" and "niah_multikey", each {str(length): accuracy},
      "text_loss" in nats a token, and "text_loss_by_position", {"first-last": loss}.

    Raises:
      UserError: some document or text window cannot be made; before anything is computed.
    """
    kinds = {"niah_single": SINGLE_NEEDLES, "niah_multikey": settings.needles}
    report = {kind: {} for kind in kinds}
    _check(tokenizer, haystack_tokens, settings)
    total, done = len(kinds) * len(settings.lengths) + 1, 0
    for kind, needles in kinds.items():
        for length in settings.lengths:
            report[kind][str(length)] = niah_accuracy(
                config,
                params,
                tokenizer,
                haystack_tokens,
                length=length,
                needles=needles,
                documents=settings.documents,
                seed=settings.seed,
                batch=settings.batch,
                prefill_chunk=settings.prefill_chunk,
            )
            done += 1
            progress(f"{kind} {length}", done, total)
    loss = text_loss(
        config,
        params,
        haystack_tokens,
        length=settings.lengths[0],
        windows=settings.text_windows,
        batch=settings.batch,
    )
    progress("text_loss", total, total)
    return {**report, "text_loss": loss.mean, "text_loss_by_position": loss.by_position}


def _check(tokenizer: Tokenizer, haystack_tokens: np.ndarray, settings: EvalSettings) -> None:
    symbols, rng = needle_symbols(tokenizer), np.random.default_rng(0)
    haystack_tokens = np.asarray(haystack_tokens, np.int32)
    for needles in (SINGLE_NEEDLES, settings.needles):
        for length in settings.lengths:
            needle_document(symbols, haystack_tokens, rng, length=length, needles=needles)

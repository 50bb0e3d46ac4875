"""Scores all heads of a teacher on the retrieval probes."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from hydrahead_jax.config import FullAttention, ModelConfig
from hydrahead_jax.errors import UserError
from hydrahead_jax.evals.niah import needle_symbols
from hydrahead_jax.selection.effects import PairEffects
from hydrahead_jax.selection.probes import probe_pairs, retrieval_probes
from hydrahead_jax.selection.receiver import MIN_PAIRS, Effects, receiver_effects
from hydrahead_jax.selection.scores import HeadScores, head_scores

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectionSettings:
    """Attributes:
    pairs: counterfactual pairs per sub-probe.
    length: tokens of a document; None is the longest the model was trained for, at most 4096.
    needles: needles of the largest multi-key sub-probe, capped by the tokenizer's keys.
    seed: determines all pairs.
    batch: pairs at a time; memory grows with it, scores do not change.
    """

    pairs: int = 8
    length: int | None = None
    needles: int = 8
    seed: int = 0
    batch: int = 8

    def __post_init__(self):
        if self.pairs < MIN_PAIRS:
            raise UserError(f"pairs={self.pairs} must be at least {MIN_PAIRS}")
        if self.needles < 2 or self.batch < 1 or self.seed < 0:
            raise UserError(
                f"needles={self.needles} must be at least 2, batch={self.batch} at least 1 and "
                f"seed={self.seed} at least 0"
            )


def select(
    config: ModelConfig,
    params: dict,
    tokenizer: Tokenizer,
    haystack: np.ndarray,
    settings: SelectionSettings = SelectionSettings(),
    *,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[HeadScores, dict[str, Any]]:
    """Head scores, and a JSON-ready account of how they came about.

    Args:
      config: of the teacher.
      params: of the teacher.
      tokenizer: with key and value symbols.
      haystack: text tokens that the needles are put into.
      settings: see there.
      progress: called with the pairs done and the pairs in all.

    Raises:
      UserError: the model is no teacher, the documents do not fit, or the model does not retrieve.
    """
    length = settings.length or min(config.max_length, 4096)
    if length > config.max_length:
        raise UserError(
            f"documents of {length} tokens are longer than the {config.max_length} that the model "
            "allows"
        )
    if any(mixer != FullAttention() for mixer in config.mixers):
        raise UserError("heads are scored in the teacher, whose layers are all full attention")
    try:
        symbols = needle_symbols(tokenizer)
    except ValueError as error:
        raise UserError(str(error)) from error
    probes = retrieval_probes(settings.needles, len(symbols.keys))
    how = {"length": length, "pairs": settings.pairs, "seed": settings.seed}
    pairs = [probe_pairs(probe, symbols, haystack, **how) for probe in probes]
    done = 0

    def count(new: int) -> None:
        nonlocal done
        done += new
        if progress is not None:
            progress(done, settings.pairs * len(probes))

    effects = [
        receiver_effects(
            config, params, probe_pairs_, name=probe.name, batch=settings.batch, progress=count
        )
        for probe, probe_pairs_ in zip(probes, pairs, strict=True)
    ]
    scores = _scores(probes, effects, config)
    return scores, {**how, "needles": probes[-1].needles, **_account(scores, effects)}


def _scores(probes, effects: list[Effects], config: ModelConfig) -> HeadScores:
    pair_effects = [
        PairEffects(e.raw_BLN, None, None, np.array([e.clean]), np.array([e.corrupted]), e.skipped)
        for e in effects
    ]
    softmax_LN = np.ones((config.layers, config.query_heads), bool)
    return head_scores(probes, pair_effects, softmax_LN)


def _account(scores: HeadScores, effects: list[Effects]) -> dict[str, Any]:
    skipped = {name: e.skipped for name, e in zip(scores.probes, effects, strict=True)}
    if any(skipped.values()):
        _log.info("pairs skipped because the readouts are too close: %s", skipped)
    return {
        "skipped": skipped,
        "clean_readout": dict(zip(scores.probes, scores.clean_P.tolist(), strict=True)),
        "corrupted_readout": dict(zip(scores.probes, scores.corrupted_P.tolist(), strict=True)),
        "critical_heads": int(scores.critical_LN.sum()),
        "convertible_heads": int(scores.convertible_LN.sum()),
        "heads": int(scores.critical_LN.size),
        "gini_by_layer": scores.gini_L.tolist(),
    }

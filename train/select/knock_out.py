"""Measures knock-out curves of a model, and saves them in a file point by point."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hydrahead_jax.cache import layer_formats
from hydrahead_jax.config import ModelConfig
from hydrahead_jax.dataclass_json import to_plain
from hydrahead_jax.evals.haystack import Haystack
from hydrahead_jax.evals.needle_questions import Questions, needle_questions
from hydrahead_jax.evals.niah_accuracy import niah_accuracy
from hydrahead_jax.evals.template import Template
from hydrahead_jax.json_file import read_json
from hydrahead_jax.selection import HeadScores
from hydrahead_jax.selection.checks.ablation import mean_heads
from hydrahead_jax.selection.checks.knockout import (
    SCORE_ORDER,
    Curves,
    KnockOutSettings,
    knock_out_curves,
    knock_out_orders,
)
from hydrahead_jax.selection.probes.pairs import ProbePairs
from hydrahead_jax.token_ids import check_token_ids
from train.data.text import Corpus
from train.files.run_folder import write_json

KNOCK_OUT = "knock_out.json"
_CALIBRATION = 32


def knock_out_questions(
    corpus: Corpus, held_out: Haystack, settings: KnockOutSettings, template: Template
) -> Questions:
    """Makes the documents with their questions; raises UserError where they cannot be made."""
    return needle_questions(
        corpus.tokenizer,
        held_out,
        length=settings.length,
        needles=settings.needles,
        template=template,
        documents=settings.documents,
        seed=settings.seed,
        reply=settings.reply,
        stops=corpus.stops,
    )


def measure_knock_out(
    path: Path,
    config: ModelConfig,
    params: dict,
    questions: Questions,
    scores: HeadScores,
    pairs: Sequence[ProbePairs],
    settings: KnockOutSettings,
    *,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Measures retrieval by generation with heads removed; continues an earlier call.

    Args:
      path: JSON file that holds the points.
      config: config of the model.
      params: parameters of the model.
      questions: result of `knock_out_questions`.
      scores: scores of the model's heads.
      pairs: pairs of the retrieval sub-probes; their documents give the heads' means.
      settings: settings that the questions were made with.
      progress: called with a stage's name, the points done and in all.

    Returns:
      The content of the file: "of", what the points depend on, "counts" and "curves".

    Raises:
      UserError: the settings do not suit the model.
    """
    counts = settings.counts_for(int(scores.softmax_LN.sum()))
    orders = knock_out_orders(
        scores, kv_heads=config.kv_heads, draws=settings.draws, seed=settings.seed
    )
    order = " ".join(f"{layer}.{head}" for layer, head in orders[SCORE_ORDER])
    record = {"of": {"settings": to_plain(settings), "order": order}, "counts": list(counts)}
    known = _known(path, record)
    if all(len(known.get(name, ())) == len(counts) for name in orders):
        return {**record, "curves": known}
    how = {
        "batch": settings.batch,
        "prefill_chunk": settings.prefill_chunk,
        "kv_cache": layer_formats(config, settings.kv_cache),
    }
    accuracy = lambda edits: niah_accuracy(config, params, questions, **how, edits=edits)

    def on_point(curves: Curves, done: int, total: int) -> None:
        write_json(path, {**record, "curves": curves})
        progress("knock-out", done, total)

    tokens_BT, segment_ids_BT = _calibration(pairs)
    check_token_ids(tokens_BT, config.vocab, "the text of the probes")
    mean_LNH = mean_heads(config, params, tokens_BT, segment_ids_BT)
    curves = knock_out_curves(orders, counts, mean_LNH, accuracy, known=known, on_point=on_point)
    return {**record, "curves": curves}


def _known(path: Path, record: dict[str, Any]) -> Curves:
    """Returns the points that were measured earlier for the same heads and settings."""
    found = read_json(path) if path.is_file() else {}
    same = all(found.get(key) == value for key, value in record.items())
    return found["curves"] if same else {}


def _calibration(pairs: Sequence[ProbePairs]) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens and segments of some documents of every sub-probe."""
    each = -(-_CALIBRATION // len(pairs))
    columns = zip(*((p.tokens_BT[:each], p.segment_ids_BT[:each]) for p in pairs), strict=True)
    return tuple(np.concatenate(column) for column in columns)

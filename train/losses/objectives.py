"""Defines what the stages minimise, as pure functions of parameters, batch and teacher's targets.

`targets` are the teacher's, outside of differentiation; `counts` are taken over the complete
batch, so that the losses of its parts add up to its own. Metrics are (sum, count) pairs: averages
over steps, parts of a batch and devices are exact.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.models import merge
from hydrahead_jax.sharding import Layout
from hydrahead_jax.vocabulary import Unembedding, kept_scores, pair_scores, token_scores
from train.losses.align import align_loss, align_targets
from train.losses.model_batch import ModelBatch
from train.losses.shared import (
    Counts,
    Metrics,
    head_metrics,
    keep_statistics,
    mean,
    next_token_metrics,
    real_tokens,
    run_model,
    slots_aid,
    unembedding,
)
from train.stage.stage import Stage

# Vocabulary entries in a tile of logits; a tile covers some of the tokens.
VOCABULARY_AT_ONCE = 8192


class Objective(NamedTuple):
    """Holds the functions that make up the loss of a stage.

    Attributes:
      targets: (stage, config, params, batch, layout) -> what the loss needs of the teacher; None
        without a teacher.
      loss: (stage, config, params, batch, targets, counts, layout) -> (loss, metrics); `batch` may
        be a part, and the loss is then its share.
    """

    targets: Callable[[Stage, ModelConfig, dict, ModelBatch, Layout | None], Any] | None
    loss: Callable[..., tuple[jax.Array, Metrics]]


class DistillTargets(NamedTuple):
    """Holds the factors of the teacher's logits, which are not multiplied out."""

    hidden_BTD: jax.Array
    unembedding: Unembedding


def _scored(score, teacher: tuple, stage, config, params, batch, counts, layout):
    """Scores the next tokens, after what `score` takes of the teacher, and measures the heads.

    Returns:
      The scores, the metrics of the heads, and `slots_aid`.
    """
    model = merge(config, params)
    output = run_model(stage, model, batch, layout, keep_statistics)
    what = (*teacher, output.hidden_BTD, unembedding(model), batch.target_BT)
    scores = score(*what, at_once=VOCABULARY_AT_ONCE, layout=layout)
    return scores, head_metrics(output.taps), slots_aid(stage, config, output.taps, counts)


def _with_aid(loss, metrics: Metrics, aid, weight) -> tuple[jax.Array, Metrics]:
    """Adds `slots_aid` to a loss that is a mean over a complete batch of that weight."""
    if aid is None:
        return loss, metrics
    loss += aid
    return loss, metrics | {"loss": (loss * weight, metrics["loss"][1])}


def _next_token_loss(stage, config, params, batch, targets, counts, layout):
    scores, heads, aid = _scored(token_scores, (), stage, config, params, batch, counts, layout)
    total = jnp.sum(scores.nll_X * batch.target_weight_BT)
    metrics = {"loss": (total, jnp.sum(batch.target_weight_BT))}
    metrics |= next_token_metrics(stage, batch, scores) | heads
    return _with_aid(total / counts["weights"], metrics, aid, counts["weights"])


def _distill_targets(stage, config, params, batch, layout) -> DistillTargets:
    model = merge(config, params)
    return DistillTargets(run_model(stage, model, batch, layout).hidden_BTD, unembedding(model))


def _distill_loss(stage, config, params, batch, targets: DistillTargets, counts, layout):
    """Computes eq 16: KL(teacher || student) on real tokens, plus ce_weight times cross entropy."""
    scores, heads, aid = _scored(pair_scores, targets, stage, config, params, batch, counts, layout)
    is_target_BT = batch.target_weight_BT > 0
    loss, metrics = _distilled(stage, batch, scores, counts)
    metrics["teacher_nll"] = mean(scores.teacher_nll_X, is_target_BT)
    return _with_aid(loss, metrics | heads, aid, counts["tokens"])


def _cached_distill_loss(stage, config, params, batch, targets, counts, layout):
    """Computes the KL over the cached tokens and all others as one; a lower bound of the KL."""
    teacher = (batch.teacher.normalised(),)
    scores, heads, aid = _scored(kept_scores, teacher, stage, config, params, batch, counts, layout)
    loss, metrics = _distilled(stage, batch, scores, counts)
    return _with_aid(loss, metrics | heads, aid, counts["tokens"])


def _distilled(stage: Stage, batch: ModelBatch, scores, counts: Counts):
    """Adds up the KL at temperature 1 and, where it has a weight, cross entropy."""
    real_BT = real_tokens(batch)
    kl, tokens = jnp.sum(scores.kl_X * real_BT), jnp.sum(real_BT)
    metrics = {"loss": (kl, tokens), "kl": (kl, tokens)}
    metrics |= next_token_metrics(stage, batch, scores)
    loss = kl / counts["tokens"]
    if stage.ce_weight == 0:
        return loss, metrics
    ce = jnp.sum(scores.nll_X * batch.target_weight_BT)
    metrics["ce"] = (ce, jnp.sum(batch.target_weight_BT))
    loss = loss + stage.ce_weight * ce / counts["weights"]
    return loss, metrics | {"loss": (loss * counts["tokens"], tokens)}


def objective_of(stage: Stage) -> Objective:
    """Returns what a stage minimises."""
    return _CACHED_DISTILL if stage.teacher_cache is not None else OBJECTIVES[stage.loss]


OBJECTIVES = {
    "next_token": Objective(None, _next_token_loss),
    "align": Objective(align_targets, align_loss),
    "distill": Objective(_distill_targets, _distill_loss),
}
_CACHED_DISTILL = Objective(None, _cached_distill_loss)

"""What the stages minimise: pure functions of parameters, batch and the teacher's targets.

A loss is split in two: `targets`, from the teacher, outside of differentiation, and `loss`.
Metrics are (sum, count) pairs, so that averages over steps are exact.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.models import merge
from hydrahead_jax.models.stream import make_stream
from train.data import Batch
from train.stage import Stage
from train.vocabulary import forward_kl, token_scores

# Vocabulary entries whose logits exist at one time.
VOCABULARY_AT_ONCE = 16384

Metrics = dict[str, tuple[jax.Array, jax.Array]]


class Objective(NamedTuple):
    """Attributes:
    targets: (config, params, batch) -> what the loss needs of the teacher; None without one.
    loss: (stage, config, params, batch, targets) -> (loss, metrics).
    """

    targets: Callable[[ModelConfig, dict, Batch], Any] | None
    loss: Callable[[Stage, ModelConfig, dict, Batch, Any], tuple[jax.Array, Metrics]]


class AlignTargets(NamedTuple):
    """For each layer, what the teacher's mixer read and wrote."""

    mixer_in: list[jax.Array]
    mixer_out: list[jax.Array]


class DistillTargets(NamedTuple):
    """The teacher's logits, not yet multiplied out."""

    hidden_BTD: jax.Array
    unembedding_DV: jax.Array


def next_token_targets(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """What follows each token, and its weight: 0 on padding and on the last of a document."""
    shift = lambda x_BT: jnp.pad(x_BT[:, 1:], ((0, 0), (0, 1)))
    segments_BT, next_segments_BT = batch.segment_ids_BT, shift(batch.segment_ids_BT)
    same_BT = (segments_BT == next_segments_BT) & (segments_BT != 0)
    return shift(batch.tokens_BT), jnp.where(same_BT, shift(batch.loss_weight_BT), 0.0)


def _next_token_loss(stage: Stage, config, params, batch: Batch, targets):
    model = merge(config, params)
    hidden_BTD = _hidden(model, batch)
    return _cross_entropy(stage, model, hidden_BTD, batch)


def _cross_entropy(stage: Stage, model, hidden_BTD, batch: Batch):
    targets_BT, weights_BT = next_token_targets(batch)
    weights_X = weights_BT.ravel()
    scores = token_scores(
        hidden_BTD.reshape(-1, hidden_BTD.shape[-1]),
        model.unembedding_DV(),
        targets_BT.ravel(),
        at_once=VOCABULARY_AT_ONCE,
    )
    total, count = jnp.sum(scores.nll_X * weights_X), jnp.sum(weights_X)
    metrics = {"loss": (total, count)}
    if stage.data.needles is not None and stage.data.answer_weight > 0:
        answer_X = weights_X > stage.data.text_weight
        metrics["answer_accuracy"] = (jnp.sum(scores.hit_X & answer_X), jnp.sum(answer_X))
        text_X = (weights_X > 0) & ~answer_X
        metrics["text_loss"] = (jnp.sum(scores.nll_X * text_X), jnp.sum(text_X))
    return total / jnp.maximum(count, 1e-9), metrics


def _align_targets(config: ModelConfig, params: dict, batch: Batch) -> AlignTargets:
    taps = merge(config, params)(
        batch.tokens_BT, segment_ids_BT=batch.segment_ids_BT, training=True
    ).taps
    return AlignTargets([t.mixer_in_BTD for t in taps], [t.mixer_out_BTD for t in taps])


def _align_loss(stage: Stage, config, params, batch: Batch, targets: AlignTargets):
    """Eq 15: each mixer is fed the teacher's input, so layers do not wait for one another."""
    model = merge(config, params)
    stream = make_stream(batch.tokens_BT.shape, batch.segment_ids_BT, None, None, True)
    real_BT = (batch.segment_ids_BT != 0).astype(jnp.float32)
    count = jnp.sum(real_BT)
    metrics = {}
    for index, block in enumerate(model.layers):
        out_BTD = block.mixer(targets.mixer_in[index], stream, None, None).out_BTD
        error_BTD = out_BTD.astype(jnp.float32) - targets.mixer_out[index].astype(jnp.float32)
        error_BT = jnp.mean(error_BTD**2, axis=-1)
        metrics[f"mse_layer_{index:02d}"] = (jnp.sum(error_BT * real_BT), count)
    total = sum(total for total, _ in metrics.values()) / len(metrics)
    return total / jnp.maximum(count, 1.0), {"loss": (total, count), **metrics}


def _distill_targets(config: ModelConfig, params: dict, batch: Batch) -> DistillTargets:
    model = merge(config, params)
    return DistillTargets(_hidden(model, batch), model.unembedding_DV())


def _distill_loss(stage: Stage, config, params, batch: Batch, targets: DistillTargets):
    """Eq 16: KL(teacher || student) on every real token, and ce_weight times cross entropy."""
    model = merge(config, params)
    hidden_BTD = _hidden(model, batch)
    rows = lambda x_BTD: x_BTD.reshape(-1, x_BTD.shape[-1])
    kl_X = forward_kl(
        rows(targets.hidden_BTD),
        targets.unembedding_DV,
        rows(hidden_BTD),
        model.unembedding_DV(),
        at_once=VOCABULARY_AT_ONCE,
    )
    real_X = (batch.segment_ids_BT != 0).astype(jnp.float32).ravel()
    total, count = jnp.sum(kl_X * real_X), jnp.sum(real_X)
    loss = total / jnp.maximum(count, 1.0)
    if stage.ce_weight == 0:
        return loss, {"loss": (total, count)}
    ce, metrics = _cross_entropy(stage, model, hidden_BTD, batch)
    metrics = {"kl": (total, count), "ce": metrics.pop("loss"), **metrics}
    loss = loss + stage.ce_weight * ce
    return loss, {"loss": (loss, jnp.ones(())), **metrics}


def _hidden(model, batch: Batch):
    output = model(batch.tokens_BT, segment_ids_BT=batch.segment_ids_BT, training=True)
    return output.hidden_BTD


OBJECTIVES = {
    "next_token": Objective(None, _next_token_loss),
    "align": Objective(_align_targets, _align_loss),
    "distill": Objective(_distill_targets, _distill_loss),
}

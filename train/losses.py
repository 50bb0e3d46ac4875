"""What the stages minimise: pure functions of parameters, batch and the teacher's targets.

`targets` are the teacher's, outside of differentiation; `counts` are taken over the whole batch,
so that the losses of its parts add up to its own. Metrics are (sum, count) pairs: averages over
steps, parts of a batch and devices are exact.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.models import Decoder, Taps, merge, run_modules
from hydrahead_jax.models.stream import make_stream
from hydrahead_jax.sharding import Layout
from train.model_batch import ModelBatch
from train.stage import Stage
from train.vocabulary import Unembedding, kept_scores, pair_scores, token_scores

# Vocabulary entries whose logits exist at one time, for some of the tokens.
VOCABULARY_AT_ONCE = 8192

Counts = dict[str, jax.Array]
Metrics = dict[str, tuple[jax.Array, jax.Array]]


class Objective(NamedTuple):
    """Attributes:
    targets: (stage, config, params, batch, layout) -> what the loss needs of the teacher; None
      without one.
    counts: (stage, batch) -> what the sums of a loss are divided by; `batch` is whole.
    loss: (stage, config, params, batch, targets, counts, layout) -> (loss, metrics); `batch` may
      be a part, the loss is then its share.
    """

    targets: Callable[[Stage, ModelConfig, dict, ModelBatch, Layout | None], Any] | None
    counts: Callable[[Stage, ModelBatch], Counts]
    loss: Callable[..., tuple[jax.Array, Metrics]]


class AlignTargets(NamedTuple):
    """For each layer, what the teacher's mixer read and wrote: what this stage holds most of."""

    mixer_in: list[jax.Array]
    mixer_out: list[jax.Array]


class DistillTargets(NamedTuple):
    """The teacher's logits, not yet multiplied out."""

    hidden_BTD: jax.Array
    unembedding: Unembedding


def _counts(stage: Stage, batch: ModelBatch) -> Counts:
    return {
        "tokens": jnp.maximum(jnp.sum(_real(batch)), 1.0),
        "weights": jnp.maximum(jnp.sum(batch.target_weight_BT), 1e-9),
    }


def _next_token_loss(stage, config, params, batch, targets, counts, layout):
    model = merge(config, params)
    scores = token_scores(
        _run(stage, model, batch, layout).hidden_BTD,
        unembedding(model),
        batch.target_BT,
        at_once=VOCABULARY_AT_ONCE,
        layout=layout,
    )
    total = jnp.sum(scores.nll_X * batch.target_weight_BT)
    metrics = {"loss": (total, jnp.sum(batch.target_weight_BT))}
    return total / counts["weights"], metrics | _next_token_metrics(stage, batch, scores)


def _next_token_metrics(stage: Stage, batch: ModelBatch, scores) -> Metrics:
    """Of every predicted token alike, and of answers, which weigh more than text, by themselves."""
    is_target_BT = batch.target_weight_BT > 0
    metrics = {"student_nll": mean(scores.nll_X, is_target_BT)}
    if stage.data.needles is not None and stage.data.answer_weight > 0:
        is_answer_BT = batch.target_weight_BT > stage.data.text_weight
        metrics["answer_accuracy"] = mean(scores.hit_X, is_answer_BT)
        metrics["text_loss"] = mean(scores.nll_X, is_target_BT & ~is_answer_BT)
    return metrics


def _align_targets(stage, config, params, batch, layout) -> AlignTargets:
    taps = _run(stage, merge(config, params), batch, layout, _mixer_ends).taps
    return AlignTargets(*map(list, zip(*taps, strict=True)))


def _mixer_ends(taps: Taps):
    return taps.mixer_in_BTD, taps.mixer_out_BTD


def _align_loss(stage, config, params, batch, targets: AlignTargets, counts, layout):
    """Eq 15: each mixer is fed the teacher's input, so layers do not wait for one another."""
    model = merge(config, params)
    stream = make_stream(
        batch.tokens_BT.shape,
        batch.segment_ids_BT,
        batch.positions_BT,
        None,
        True,
        starts_BT=batch.starts_BT,
        layout=layout,
    )
    real_BT = _real(batch)
    _, errors = run_modules(
        _mixer_error,
        [block.mixer for block in model.layers],
        None,
        list(zip(*targets, strict=True)),
        (stream, real_BT),
        layout=layout,
        remat=stage.remat,
        scan=stage.scan_layers,
    )
    metrics = {
        f"mse_layer_{index:02d}": (error, jnp.sum(real_BT)) for index, error in enumerate(errors)
    }
    total = sum(total for total, _ in metrics.values()) / len(metrics)
    return total / counts["tokens"], {"loss": (total, jnp.sum(real_BT)), **metrics}


def _mixer_error(mixer, _, ends, shared):
    stream, real_BT = shared
    mixer_in_BTD, target_BTD = ends
    out_BTD = mixer(mixer_in_BTD, stream, None, None).out_BTD
    return None, _squared_error(out_BTD, target_BTD, real_BT)


@jax.checkpoint
def _squared_error(out_BTD, target_BTD, real_BT):
    """The backward makes the differences again, so that no layer keeps them in float32."""
    wide = jnp.promote_types(out_BTD.dtype, jnp.float32)
    error_BTD = out_BTD.astype(wide) - target_BTD.astype(wide)
    return jnp.sum(jnp.mean(error_BTD**2, axis=-1) * real_BT)


def _distill_targets(stage, config, params, batch, layout) -> DistillTargets:
    model = merge(config, params)
    return DistillTargets(_run(stage, model, batch, layout).hidden_BTD, unembedding(model))


def _distill_loss(stage, config, params, batch, targets: DistillTargets, counts, layout):
    """Eq 16: KL(teacher || student) on every real token, and ce_weight times cross entropy."""
    model = merge(config, params)
    scores = pair_scores(
        *targets,
        _run(stage, model, batch, layout).hidden_BTD,
        unembedding(model),
        batch.target_BT,
        at_once=VOCABULARY_AT_ONCE,
        layout=layout,
    )
    is_target_BT = batch.target_weight_BT > 0
    loss, metrics = _distilled(stage, batch, scores, counts)
    return loss, metrics | {"teacher_nll": mean(scores.teacher_nll_X, is_target_BT)}


def _cached_distill_loss(stage, config, params, batch, targets, counts, layout):
    """The same KL over the tokens that were kept and all others as one; a lower bound of it."""
    model = merge(config, params)
    scores = kept_scores(
        batch.teacher.normalised(),
        _run(stage, model, batch, layout).hidden_BTD,
        unembedding(model),
        batch.target_BT,
        at_once=VOCABULARY_AT_ONCE,
        layout=layout,
    )
    return _distilled(stage, batch, scores, counts)


def _distilled(stage: Stage, batch: ModelBatch, scores, counts: Counts):
    """KL at temperature 1 and, where it counts, cross entropy, of scores that have both."""
    real_BT = _real(batch)
    kl, tokens = jnp.sum(scores.kl_X * real_BT), jnp.sum(real_BT)
    metrics = {"loss": (kl, tokens), "kl": (kl, tokens)}
    metrics |= _next_token_metrics(stage, batch, scores)
    loss = kl / counts["tokens"]
    if stage.ce_weight == 0:
        return loss, metrics
    ce = jnp.sum(scores.nll_X * batch.target_weight_BT)
    metrics["ce"] = (ce, jnp.sum(batch.target_weight_BT))
    loss = loss + stage.ce_weight * ce / counts["weights"]
    return loss, metrics | {"loss": (loss * counts["tokens"], tokens)}


def mean(values_BT, chosen_BT) -> tuple[jax.Array, jax.Array]:
    """Sum and count of the chosen values."""
    chosen_BT = chosen_BT.astype(jnp.float32)
    return jnp.sum(values_BT * chosen_BT), jnp.sum(chosen_BT)


def unembedding(model: Decoder) -> Unembedding:
    """The model's, as it is kept."""
    if model.config.tied_embeddings:
        return Unembedding(model.w_embed_VD[...], 0)
    return Unembedding(model.w_unembed_DV[...], 1)


def _real(batch: ModelBatch):
    return (batch.segment_ids_BT != 0).astype(jnp.float32)


def _nothing(taps: Taps) -> None:
    return None


def _run(stage: Stage, model: Decoder, batch: ModelBatch, layout: Layout | None, tap=_nothing):
    return model(
        batch.tokens_BT,
        segment_ids_BT=batch.segment_ids_BT,
        positions_BT=batch.positions_BT,
        starts_BT=batch.starts_BT,
        training=True,
        layout=layout,
        remat=stage.remat,
        scan=stage.scan_layers,
        tap=tap,
    )


def objective_of(stage: Stage) -> Objective:
    """What a stage minimises."""
    return _CACHED_DISTILL if stage.teacher_cache is not None else OBJECTIVES[stage.loss]


OBJECTIVES = {
    "next_token": Objective(None, _counts, _next_token_loss),
    "align": Objective(_align_targets, _counts, _align_loss),
    "distill": Objective(_distill_targets, _counts, _distill_loss),
}
_CACHED_DISTILL = Objective(None, _counts, _cached_distill_loss)

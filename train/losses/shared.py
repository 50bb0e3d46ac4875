"""Provides what the losses of all stages have in common."""

import jax
import jax.numpy as jnp

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.models import Decoder, Taps
from hydrahead_jax.sharding import Layout
from hydrahead_jax.vocabulary import Unembedding
from train.losses.model_batch import ModelBatch
from train.stage.stage import Stage

_SQUARES = ("fa_mean_square", "gdn_mean_square")
_BRANCH_SQUARES = (*_SQUARES, "slots_mean_square")
Counts = dict[str, jax.Array]
Metrics = dict[str, tuple[jax.Array, jax.Array]]


def whole_counts(batch: ModelBatch) -> Counts:
    """Returns the divisors of a loss's sums; `batch` is complete."""
    return {
        "tokens": jnp.maximum(jnp.sum(real_tokens(batch)), 1.0),
        "weights": jnp.maximum(jnp.sum(batch.target_weight_BT), 1e-9),
    }


def real_tokens(batch: ModelBatch):
    """Returns 1 for each token that is not padding, 0 for padding."""
    return (batch.segment_ids_BT != 0).astype(jnp.float32)


def mean(values_BT, chosen_BT) -> tuple[jax.Array, jax.Array]:
    """Returns the sum and the count of the chosen values."""
    chosen_BT = chosen_BT.astype(jnp.float32)
    return jnp.sum(values_BT * chosen_BT), jnp.sum(chosen_BT)


def unembedding(model: Decoder) -> Unembedding:
    """Returns the model's unembedding matrix in its stored orientation."""
    if model.config.tied_embeddings:
        return Unembedding(model.w_embed_VD[...], 0)
    return Unembedding(model.w_unembed_DV[...], 1)


def keep_statistics(taps: Taps) -> dict:
    """Saves the statistics of a layer's heads; a tap of the model."""
    return taps.statistics


def run_model(
    stage: Stage, model: Decoder, batch: ModelBatch, layout: Layout | None, tap=lambda taps: None
):
    """Returns the model's output for a batch; `tap` says what is saved of each layer."""
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


def next_token_metrics(stage: Stage, batch: ModelBatch, scores) -> Metrics:
    """Returns the mean loss over all target tokens.

    Where answers have their own weight, it adds the accuracy on answers and the loss on text.
    """
    is_target_BT = batch.target_weight_BT > 0
    metrics = {"student_nll": mean(scores.nll_X, is_target_BT)}
    data = stage.data
    if (data.needles is not None or data.mqar is not None) and data.answer_weight > 0:
        is_answer_BT = batch.target_weight_BT > data.text_weight
        metrics["answer_accuracy"] = mean(scores.hit_X, is_answer_BT)
        metrics["text_loss"] = mean(scores.nll_X, is_target_BT & ~is_answer_BT)
    return metrics


def head_metrics(statistics: list[dict]) -> Metrics:
    """Averages gates, alpha, beta and sigma, the slots' share of the softmax, over all heads.

    It adds sigma of each layer that has slots. For each layer that has both kinds of heads it adds
    their mean squares before gate and norm, of which `with_rms_ratios` makes ratios.

    Args:
      statistics: statistics of each layer's mixer.
    """
    metrics = {}
    for name in ("fa_gate", "gdn_gate", "slots_gate", "alpha", "beta", "sigma"):
        found = [layer[name] for layer in statistics if name in layer]
        if found:
            metrics[name] = jax.tree.map(lambda *x: sum(x), *found)
    for index, layer in enumerate(statistics):
        if "sigma" in layer:
            metrics[f"sigma_layer_{index:02d}"] = layer["sigma"]
        squares = [layer[name] for name in _BRANCH_SQUARES if name in layer]
        if len(squares) == 2:
            names = [f"{name}_layer_{index:02d}" for name in _SQUARES]
            metrics |= dict(zip(names, squares, strict=True))
    return metrics


def slots_aid(stage: Stage, config: ModelConfig, statistics: list[dict], counts: Counts):
    """Returns the part of a loss that keeps slots from being ignored; None where it has no weight.

    It is the mean of -log(sigma) over tokens and heads with slots, of a part of the batch.
    """
    heads = sum(len(config.slot_heads(layer)) for layer in range(config.layers))
    if not stage.slots_weight or not heads:
        return None
    total = sum(layer["slots_bce"][0] for layer in statistics if "slots_bce" in layer)
    return stage.slots_weight * total / (counts["tokens"] * heads)


def with_rms_ratios(metrics: Metrics) -> Metrics:
    """Replaces mean squares by the RMS of the recurrent heads over that of the softmax heads.

    Recurrent heads have the delta rule or slots. A ratio of sums is no sum of ratios, so this must
    follow the sum over microbatches.

    Args:
      metrics: metrics of `head_metrics` and others, over all tokens of a step.
    """
    metrics = dict(metrics)
    names = [name for name in metrics if name.startswith(f"{_SQUARES[0]}_layer_")]
    ratios = {}
    for layer in (name.removeprefix(f"{_SQUARES[0]}_") for name in names):
        (fa, fa_count), (gdn, gdn_count) = (metrics.pop(f"{name}_{layer}") for name in _SQUARES)
        squares = gdn / jnp.maximum(gdn_count, 1.0), fa / jnp.maximum(fa_count, 1.0)
        ratio = jnp.sqrt(squares[0] / jnp.maximum(squares[1], 1e-30))
        ratios[f"rms_ratio_{layer}"] = (ratio * fa_count, fa_count)
    if ratios:
        metrics["rms_ratio"] = jax.tree.map(lambda *x: sum(x), *ratios.values())
    return metrics | ratios

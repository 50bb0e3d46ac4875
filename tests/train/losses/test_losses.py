"""Compares losses with plain numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hydrahead_jax.config import Hydra, HydraChoices, NativeHybrid
from hydrahead_jax.models import init_params, merge
from hydrahead_jax.models.stream import make_stream
from tests.tolerances import OP, assert_close
from tests.train import small
from train.data.batches import Batch, DataConfig, NeedleData
from train.losses import objectives
from train.losses.model_batch import make_model_batch, next_token_targets
from train.losses.objectives import OBJECTIVES
from train.losses.shared import whole_counts, with_rms_ratios
from train.stage.optimizer import AdamW
from train.stage.stage import Stage


@pytest.fixture
def batch() -> Batch:
    """Returns a row of two packed documents and padding, and a full row."""
    rng = np.random.default_rng(0)
    segments = np.array([[1, 1, 1, 2, 2, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, 2]], np.int32)
    tokens = np.where(segments > 0, rng.integers(1, small.VOCAB, segments.shape), 0)
    weight = np.where(segments > 0, rng.uniform(0.5, 1.5, segments.shape), 0)
    return Batch(tokens.astype(np.int32), segments, weight.astype(np.float32))


def stage(loss: str, **more) -> Stage:
    data = DataConfig(length=9, batch=2)
    return Stage(name="x", loss=loss, steps=1, data=data, optim=AdamW(learning_rate=1.0), **more)


def loss_of(stage: Stage, params: dict, batch: Batch, targets=None, config=small.STUDENT):
    objective = OBJECTIVES[stage.loss]

    def loss(params, batch, targets):
        batch = make_model_batch(batch, None)
        counts = whole_counts(batch)
        return objective.loss(stage, config, params, batch, targets, counts, None)

    return jax.jit(loss)(params, batch, targets)


def targets_of(name: str, teacher: dict, batch: Batch):
    targets = OBJECTIVES[name].targets
    if targets is None:
        return None
    made = lambda params, batch: targets(
        stage(name), small.TEACHER, params, make_model_batch(batch, None), None
    )
    return jax.jit(made)(teacher, batch)


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def naive_kl(teacher_XV, student_XV):
    teacher, student = log_softmax(teacher_XV), log_softmax(student_XV)
    return (np.exp(teacher) * (teacher - student)).sum(-1)


def test_next_token_targets(batch):
    targets_BT, weights_BT = next_token_targets(batch)
    for b in range(2):
        for t in range(9):
            last = t == 8 or batch.segment_ids_BT[b, t] != batch.segment_ids_BT[b, t + 1]
            if last or batch.segment_ids_BT[b, t] == 0:
                assert weights_BT[b, t] == 0
            else:
                assert weights_BT[b, t] == batch.loss_weight_BT[b, t + 1] > 0
                assert targets_BT[b, t] == batch.tokens_BT[b, t + 1]


def logits_of(config, params, batch) -> np.ndarray:
    def logits(params, batch):
        model = merge(config, params)
        output = model(batch.tokens_BT, segment_ids_BT=batch.segment_ids_BT, training=True)
        return model.logits(output.hidden_BTD)

    return np.asarray(jax.jit(logits)(params, batch), np.float64)


@pytest.fixture(scope="module")
def models():
    teacher = init_params(small.TEACHER, jax.random.key(0))
    return teacher, init_params(small.STUDENT, jax.random.key(1))


def test_next_token_loss(batch, models):
    _, student = models
    loss, metrics = loss_of(stage("next_token"), student, batch)
    log_p = log_softmax(logits_of(small.STUDENT, student, batch))
    total = count = 0.0
    for b in range(2):
        for t in range(1, 9):
            if batch.segment_ids_BT[b, t] and (
                batch.segment_ids_BT[b, t] == batch.segment_ids_BT[b, t - 1]
            ):
                weight = batch.loss_weight_BT[b, t]
                total -= weight * log_p[b, t - 1, batch.tokens_BT[b, t]]
                count += weight
    assert_close(loss, total / count, OP)
    assert_close(metrics["loss"][0], total, OP)
    assert_close(metrics["loss"][1], count, OP)


def test_answer_metrics(batch, models):
    """Answers are the tokens that weigh more than text."""
    weight = np.where(batch.segment_ids_BT > 0, 0.1, 0).astype(np.float32)
    weight[0, 4:6] += 1
    batch = dataclasses.replace(batch, loss_weight_BT=weight)
    needles = NeedleData(share=1.0, lengths=(9, 9), needles=(1, 1))
    data = DataConfig(length=9, batch=2, needles=needles, text_weight=0.1, answer_weight=1.0)
    _, metrics = loss_of(dataclasses.replace(stage("next_token"), data=data), models[1], batch)
    logits = logits_of(small.STUDENT, models[1], batch)
    hits = [logits[0, t - 1].argmax() == batch.tokens_BT[0, t] for t in (4, 5)]
    assert (metrics["answer_accuracy"][0], metrics["answer_accuracy"][1]) == (sum(hits), 2)
    assert metrics["text_loss"][1] == 2 + 3 + 7 - 2


def test_slots_weight_adds_the_mean_of_minus_log_sigma(batch):
    slots = NativeHybrid(window=2, slots=3)
    hydra = Hydra(fa_heads=(1,), choices=HydraChoices(native_hybrid=slots))
    config = dataclasses.replace(small.TEACHER, mixers=(slots, hydra))
    params = init_params(config, jax.random.key(1))
    plain, aided = (
        loss_of(stage("next_token", slots_weight=w), params, batch, config=config)
        for w in (0.0, 0.5)
    )

    @jax.jit
    def statistics(params, tokens_BT, segment_ids_BT):
        output = merge(config, params)(tokens_BT, segment_ids_BT=segment_ids_BT)
        return [tap.statistics["slots_bce"] for tap in output.taps]

    found = statistics(params, batch.tokens_BT, batch.segment_ids_BT)
    sums, counts = zip(*found, strict=True)
    assert sum(counts) == np.sum(batch.segment_ids_BT != 0) * (4 + 3)
    assert_close(aided[0] - plain[0], 0.5 * sum(sums) / sum(counts), OP)
    assert_close(aided[1]["loss"][0] / aided[1]["loss"][1], aided[0], OP)


def test_align_loss(batch, models):
    """The loss is eq 15, one layer at a time, each on the teacher's input."""
    teacher, student = models
    loss, metrics = loss_of(stage("align"), student, batch, targets_of("align", teacher, batch))
    segments_BT = jnp.asarray(batch.segment_ids_BT)
    taps = merge(small.TEACHER, teacher)(
        jnp.asarray(batch.tokens_BT), segment_ids_BT=segments_BT, training=True
    ).taps
    stream = make_stream(segments_BT.shape, segments_BT, None, None, True)
    errors = []
    for tap, block in zip(taps, merge(small.STUDENT, student).layers, strict=True):
        out = block.mixer(tap.mixer_in_BTD, stream, None, None).out_BTD
        squares = (np.asarray(out, np.float64) - np.asarray(tap.mixer_out_BTD, np.float64)) ** 2
        errors.append(squares[batch.segment_ids_BT > 0].mean())
    assert_close(loss, np.mean(errors), OP)
    for index, error in enumerate(errors):
        total, count = metrics[f"mse_layer_{index:02d}"]
        assert_close(total / count, error, OP)


@pytest.mark.parametrize("ce_weight", [0.0, 0.5])
def test_distill_loss(ce_weight, batch, models, monkeypatch):
    monkeypatch.setattr(objectives, "VOCABULARY_AT_ONCE", 128)
    teacher, student = models
    targets = targets_of("distill", teacher, batch)
    loss, metrics = loss_of(stage("distill", ce_weight=ce_weight), student, batch, targets)
    kl_BT = naive_kl(
        logits_of(small.TEACHER, teacher, batch), logits_of(small.STUDENT, student, batch)
    )
    kl = kl_BT[batch.segment_ids_BT > 0].mean()
    ce, _ = loss_of(stage("next_token"), student, batch)
    assert_close(loss, kl + ce_weight * float(ce), OP)
    assert_close(metrics["loss"][0] / metrics["loss"][1], loss, OP)


@pytest.mark.parametrize("name", ["next_token", "align", "distill"])
def test_padding_does_not_matter(name, batch, models):
    """Other tokens on padding leave the loss unchanged; another real token changes it."""
    teacher, student = models
    compiled = jax.jit(
        lambda batch: loss_of(stage(name), student, batch, targets_of(name, teacher, batch))[0]
    )
    value = lambda batch: float(compiled(batch))
    tokens = batch.tokens_BT.copy()
    tokens[0, 7:] = 9
    assert_close(value(dataclasses.replace(batch, tokens_BT=tokens)), value(batch), OP)
    tokens[0, 0] += 1
    assert abs(value(dataclasses.replace(batch, tokens_BT=tokens)) - value(batch)) > 1e-4


def test_parts_of_a_batch_add_up(batch, models):
    """Rows have different numbers of tokens; losses and metrics are those of the full batch."""
    teacher, student = models
    kind = stage("distill", ce_weight=0.5)
    objective = OBJECTIVES[kind.loss]

    def loss(batch, counts):
        targets = objective.targets(kind, small.TEACHER, teacher, batch, None)
        return objective.loss(kind, small.STUDENT, student, batch, targets, counts, None)

    whole = make_model_batch(jax.tree.map(jnp.asarray, batch), None)
    counts = whole_counts(whole)
    expected, metrics = jax.jit(loss)(whole, counts)
    part = jax.jit(loss)
    parts = [part(jax.tree.map(lambda x, i=i: x[i : i + 1], whole), counts) for i in range(2)]
    assert_close(sum(value for value, _ in parts), expected, OP)
    added = with_rms_ratios(jax.tree.map(jnp.add, *(found for _, found in parts)))
    metrics = with_rms_ratios(metrics)
    for name in ("loss", "student_nll", "alpha", "fa_gate", "rms_ratio", "rms_ratio_layer_01"):
        assert_close(added[name][0] / added[name][1], metrics[name][0] / metrics[name][1], OP)


def test_what_heads_do(batch, models):
    """Gates are 1 where their weights are 0; a layer's ratio compares its two kinds of heads."""
    _, metrics = loss_of(stage("next_token"), models[1], batch)
    metrics = with_rms_ratios(metrics)
    value = lambda name: metrics[name][0] / metrics[name][1]
    assert value("fa_gate") == value("gdn_gate") == 1
    assert 0 < value("alpha") < 1 and 0 < value("beta") < 1

    @jax.jit
    def heads_before_gates(params, tokens_BT, segments_BT):
        model, call = merge(small.STUDENT, params), {"segment_ids_BT": segments_BT}
        x_BTD = model(tokens_BT, **call, training=True).taps[1].mixer_in_BTD
        stream = make_stream(segments_BT.shape, segments_BT, None, None, True)
        fa, gdn = model.layers[1].mixer.fa, model.layers[1].mixer.gdn
        fa_BTNH, _ = fa(fa.qkv, *fa.qkv(x_BTD), stream, None)
        return fa_BTNH, gdn(gdn.qkv, x_BTD, *gdn.qkv(x_BTD), stream, None)[0]

    fa_BTNH, gdn_BTNH = heads_before_gates(models[1], batch.tokens_BT, batch.segment_ids_BT)
    real = batch.segment_ids_BT > 0
    rms = lambda x: np.sqrt(np.mean(np.asarray(x, np.float64)[real] ** 2))
    assert_close(value("rms_ratio_layer_01"), rms(gdn_BTNH) / rms(fa_BTNH), OP)

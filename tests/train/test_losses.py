"""Losses against plain numpy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hydrahead_jax.models import init_params, merge
from hydrahead_jax.models.stream import make_stream
from tests.tolerances import OP, assert_close
from tests.train import small
from train import losses
from train.data import Batch, DataConfig, NeedleData
from train.losses import OBJECTIVES, next_token_targets
from train.optim import AdamW
from train.stage import Stage
from train.vocabulary import forward_kl, token_scores

X, D, V = 7, 5, 23


@pytest.fixture
def batch() -> Batch:
    """Two packed documents and padding; a row that is full."""
    rng = np.random.default_rng(0)
    segments = np.array([[1, 1, 1, 2, 2, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, 2]], np.int32)
    tokens = np.where(segments > 0, rng.integers(1, small.VOCAB, segments.shape), 0)
    weight = np.where(segments > 0, rng.uniform(0.5, 1.5, segments.shape), 0)
    return Batch(tokens.astype(np.int32), segments, weight.astype(np.float32))


def stage(loss: str, **more) -> Stage:
    data = DataConfig(length=9, batch=2)
    return Stage(name="x", loss=loss, steps=1, data=data, optim=AdamW(learning_rate=1.0), **more)


def loss_of(stage: Stage, params: dict, batch: Batch, targets=None):
    loss = OBJECTIVES[stage.loss].loss
    return jax.jit(functools.partial(loss, stage, small.STUDENT))(params, batch, targets)


def targets_of(name: str, teacher: dict, batch: Batch):
    targets = OBJECTIVES[name].targets
    return targets and jax.jit(functools.partial(targets, small.TEACHER))(teacher, batch)


def hidden(seed: int, *shape) -> jax.Array:
    return 3 * jax.random.normal(jax.random.key(seed), shape)


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def naive_kl(teacher_XV, student_XV):
    teacher, student = log_softmax(teacher_XV), log_softmax(student_XV)
    return (np.exp(teacher) * (teacher - student)).sum(-1)


@pytest.mark.parametrize("at_once", [V, V + 5, 12, 6, 1])
def test_token_scores(at_once):
    hidden_XD, w_DV = hidden(0, X, D), hidden(1, D, V)
    targets_X = jnp.array([0, 22, 11, 12, 5, 6, 7])
    targets_X = targets_X.at[3].set(jnp.argmax(hidden_XD[3] @ w_DV))
    scores = token_scores(hidden_XD, w_DV, targets_X, at_once=at_once)
    logits = np.asarray(hidden_XD, np.float64) @ np.asarray(w_DV, np.float64)
    assert_close(scores.nll_X, -log_softmax(logits)[np.arange(X), targets_X], OP)
    np.testing.assert_array_equal(scores.hit_X, logits.argmax(-1) == targets_X)
    assert scores.hit_X[3]


@pytest.mark.parametrize("at_once", [V, V + 5, 12, 6, 1])
def test_forward_kl_and_its_gradient(at_once):
    arrays = hidden(0, X, D), hidden(1, D, V), hidden(2, X, 4), hidden(3, 4, V)
    kl_X = forward_kl(*arrays, at_once=at_once)
    teacher_XV, student_XV = arrays[0] @ arrays[1], arrays[2] @ arrays[3]
    weight_X = jnp.arange(1.0, X + 1)
    assert_close(kl_X, naive_kl(teacher_XV, student_XV), OP)

    def plain(student_XD, student_DV):
        teacher = jax.nn.log_softmax(teacher_XV)
        student = jax.nn.log_softmax(student_XD @ student_DV)
        return jnp.sum(weight_X * jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1))

    def chunked(*student):
        return jnp.sum(weight_X * forward_kl(*arrays[:2], *student, at_once=at_once))

    actual = jax.grad(chunked, (0, 1))(*arrays[2:])
    for a, b in zip(actual, jax.grad(plain, (0, 1))(*arrays[2:]), strict=True):
        assert_close(a, b, OP)


def test_kl_of_a_model_with_itself_is_zero():
    arrays = hidden(0, X, D), hidden(1, D, V)
    assert_close(forward_kl(*arrays, *arrays, at_once=6), np.zeros(X), OP)


@pytest.mark.parametrize("gradient", [False, True])
def test_no_array_of_tokens_by_vocabulary(gradient):
    """Neither forward nor backward holds logits of the whole vocabulary."""

    def loss(student_XD, student_DV):
        kl_X = forward_kl(hidden(0, X, D), hidden(1, D, V), student_XD, student_DV, at_once=6)
        scores = token_scores(student_XD, student_DV, jnp.arange(X), at_once=6)
        return jnp.sum(kl_X) + jnp.sum(scores.nll_X)

    function = jax.grad(loss, (0, 1)) if gradient else loss
    jaxpr = jax.make_jaxpr(function)(hidden(2, X, 4), hidden(3, 4, V)).jaxpr
    sizes = list(shapes(jaxpr))
    assert (X, 6) in sizes
    assert not [s for s in sizes if X in s and np.prod(s) >= X * V]


def shapes(jaxpr):
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield variable.aval.shape
        for parameter in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from shapes(inner)


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


def test_align_loss(batch, models):
    """Eq 15, one layer at a time, each on the teacher's input."""
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
    monkeypatch.setattr(losses, "VOCABULARY_AT_ONCE", 128)
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
    """Other tokens there leave the loss as it is; a real token does not."""
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

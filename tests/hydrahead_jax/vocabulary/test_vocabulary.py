"""Compares losses over the vocabulary with numpy in float64, in tiles and on a mesh."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hydrahead_jax.vocabulary import (
    Kept,
    Unembedding,
    kept_scores,
    pair_scores,
    tiles,
    token_scores,
    top_tokens,
)
from tests.root import ROOT
from tests.tolerances import OP, assert_close

X, D, E, V = 7, 5, 4, 23


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Makes tiles so small that the last one must be padded."""
    monkeypatch.setattr(tiles, "TOKENS_AT_ONCE", 3)


def random(seed: int, *shape) -> jax.Array:
    return 3 * jax.random.normal(jax.random.key(seed), shape)


TEACHER = (random(0, X, D), random(1, D, V))
STUDENT = (random(2, X, E), random(3, E, V))
TARGETS = jnp.array([0, 22, 11, 12, 5, 6, 7])
WEIGHT = jnp.arange(1.0, X + 1)


def made(weight_DV, axis: int = 1) -> Unembedding:
    return Unembedding(weight_DV if axis else weight_DV.T, axis)


def log_softmax(hidden_XD, weight_DV) -> np.ndarray:
    logits = np.asarray(hidden_XD, np.float64) @ np.asarray(weight_DV, np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


LOG_P, LOG_Q = log_softmax(*TEACHER), log_softmax(*STUDENT)
KL = (np.exp(LOG_P) * (LOG_P - LOG_Q)).sum(-1)


def check_gradients(loss, d_logits_XV):
    """Checks the gradients of `loss(hidden, weight) -> (loss, scores)` and returns the scores.

    Args:
      loss: the loss.
      d_logits_XV: its known gradient in the logits.
    """
    gradients, scores = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(*STUDENT)
    assert_close(gradients[0], d_logits_XV @ np.asarray(STUDENT[1], np.float64).T, OP)
    assert_close(gradients[1], np.asarray(STUDENT[0], np.float64).T @ d_logits_XV, OP)
    return scores


def test_token_scores():
    targets_X = TARGETS.at[3].set(int(LOG_Q[3].argmax()))

    def loss(hidden_XD, weight_DV):
        scores = token_scores(hidden_XD, made(weight_DV), targets_X, at_once=12)
        return jnp.sum(WEIGHT * scores.nll_X), scores

    d_logits_XV = WEIGHT[:, None] * (np.exp(LOG_Q) - np.eye(V)[targets_X])
    scores = check_gradients(loss, d_logits_XV)
    assert_close(scores.nll_X, -LOG_Q[np.arange(X), targets_X], OP)
    np.testing.assert_array_equal(scores.hit_X, LOG_Q.argmax(-1) == targets_X)
    assert scores.hit_X[3]


@pytest.mark.parametrize(("axis", "at_once", "tokens"), [(0, 12, 3), (1, V + 5, 2048)])
def test_pair_scores(axis, at_once, tokens, monkeypatch):
    """The unembedding has either orientation, and there are many tiles or one."""
    monkeypatch.setattr(tiles, "TOKENS_AT_ONCE", tokens)

    def loss(hidden_XD, weight_DV):
        teacher = (TEACHER[0], made(TEACHER[1], axis))
        student = (hidden_XD, made(weight_DV, axis))
        scores = pair_scores(*teacher, *student, TARGETS, at_once=at_once)
        return jnp.sum(WEIGHT * (scores.kl_X + 0.5 * scores.nll_X)), scores

    d_logits_XV = np.exp(LOG_Q) - np.exp(LOG_P) + 0.5 * (np.exp(LOG_Q) - np.eye(V)[TARGETS])
    scores = check_gradients(loss, np.asarray(WEIGHT)[:, None] * d_logits_XV)
    assert_close(scores.kl_X, KL, OP)
    assert_close(scores.nll_X, -LOG_Q[np.arange(X), TARGETS], OP)
    assert_close(scores.teacher_nll_X, -LOG_P[np.arange(X), TARGETS], OP)


def test_kl_of_a_model_with_itself_is_zero():
    score = lambda *pair: pair_scores(*pair, *pair, TARGETS, at_once=6).kl_X
    assert_close(jax.jit(score)(TEACHER[0], made(TEACHER[1])), np.zeros(X), OP)


@pytest.mark.parametrize("gradient", [False, True])
def test_no_array_of_tokens_by_vocabulary(gradient, monkeypatch):
    """Neither forward nor backward pass holds more logits than one tile has."""
    monkeypatch.setattr(tiles, "TOKENS_AT_ONCE", 4)

    def loss(student_XD, student_DV):
        models = (TEACHER[0], made(TEACHER[1]), student_XD, made(student_DV))
        scores = pair_scores(*models, TARGETS, at_once=6)
        return jnp.sum(scores.kl_X + scores.nll_X)

    function = jax.grad(loss, (0, 1)) if gradient else loss
    sizes = list(shapes(jax.make_jaxpr(function)(*STUDENT).jaxpr))
    assert (4, 6) in sizes
    assert not [s for s in sizes if len(s) > 1 and np.prod(s) > max(4 * 6, D * V)]


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


def top(weight_DV, count: int) -> Kept:
    make = lambda hidden_XD, weight_DV: top_tokens(hidden_XD, made(weight_DV), count, at_once=12)
    return jax.jit(make)(TEACHER[0], weight_DV)


def test_top_tokens():
    """Two tokens tie for the last place that is saved, and one of them gets it."""
    weight_DV = TEACHER[1].at[:, 20].set(TEACHER[1][:, 3])
    log_p = log_softmax(TEACHER[0], weight_DV)
    for count in (4, V):
        kept = top(weight_DV, count)
        assert_close(kept.log_p_XK, -np.sort(-log_p)[:, :count], OP)
        assert_close(kept.log_p_XK, np.take_along_axis(log_p, np.asarray(kept.ids_XK), 1), OP)
        assert all(len(set(row)) == count for row in np.asarray(kept.ids_XK).tolist())
        tail = np.exp(np.sort(log_p)[:, : V - count]).sum(-1)
        assert np.max(np.abs(kept.tail_X - tail) / np.maximum(tail, 1e-30)) < 1e-4


def test_a_small_tail_is_not_lost_to_rounding():
    """The tail is summed; 1 - sum(p) would be 0 in float32."""
    logits_XV = np.where(np.arange(V) < 2, 0.0, -30.0) * np.ones((X, 1))
    kept = top_tokens(jnp.ones((X, 1)), made(jnp.asarray(logits_XV[:1])), 2, at_once=6)
    expected = (V - 2) * np.exp(-30.0) / 2
    np.testing.assert_allclose(kept.tail_X, expected, rtol=1e-5)


@pytest.mark.parametrize("count", [5, V])
def test_kept_scores(count):
    """The KL is at most the full KL, and equals it where every token is saved."""
    kept = top(TEACHER[1], count).normalised()
    ids = np.asarray(kept.ids_XK)

    def loss(hidden_XD, weight_DV):
        scores = kept_scores(kept, hidden_XD, made(weight_DV), TARGETS, at_once=12)
        return jnp.sum(WEIGHT * (scores.kl_X + 0.5 * scores.nll_X)), scores

    p, q = np.exp(LOG_P), np.exp(LOG_Q)
    is_kept = np.zeros((X, V), bool)
    np.put_along_axis(is_kept, ids, True, 1)
    tail_p, tail_q = ((x * ~is_kept).sum(-1) for x in (p, q))
    kl = (p * (LOG_P - LOG_Q) * is_kept).sum(-1)
    if count < V:
        kl += tail_p * np.log(tail_p / tail_q)
    ratio = tail_p / np.maximum(tail_q, 1e-300)
    d_kl = q - np.where(is_kept, p, q * ratio[:, None])
    d_logits_XV = d_kl + 0.5 * (q - np.eye(V)[TARGETS])
    scores = check_gradients(loss, np.asarray(WEIGHT)[:, None] * d_logits_XV)
    assert_close(scores.kl_X, kl, OP)
    assert np.all(scores.kl_X <= KL + 1e-4)
    if count == V:
        assert_close(scores.kl_X, KL, OP)
    assert_close(scores.nll_X, -LOG_Q[np.arange(X), TARGETS], OP)


def test_normalised():
    """Rounding of the log probabilities does not move mass to the tail or from it."""
    kept = Kept(jnp.array([[1, 2]]), jnp.log(jnp.array([[0.61, 0.305]])), jnp.array([0.1]))
    normalised = kept.normalised()
    assert_close(jnp.exp(normalised.log_p_XK), np.array([[0.6, 0.3]]), OP)
    assert_close(normalised.tail_X, np.array([0.1]), OP)


def test_bfloat16():
    """Sums are in float32: the loss is that of the rounded inputs."""
    to_bf16 = lambda arrays: tuple(x.astype(jnp.bfloat16) for x in arrays)
    teacher, student = to_bf16(TEACHER), to_bf16(STUDENT)
    score = lambda hidden_XD, weight_DV: pair_scores(
        teacher[0], made(teacher[1]), hidden_XD, made(weight_DV), TARGETS, at_once=6
    )
    log_p, log_q = log_softmax(*teacher), log_softmax(*student)
    gradient = jax.grad(lambda *x: jnp.sum(score(*x).kl_X), (0, 1))
    kl_X, grads = jax.jit(lambda *x: (score(*x).kl_X, gradient(*x)))(*student)
    assert kl_X.dtype == jnp.float32
    assert_close(kl_X, (np.exp(log_p) * (log_p - log_q)).sum(-1), OP)
    assert [x.dtype for x in grads] == [jnp.bfloat16] * 2
    d_logits_XV = np.exp(log_q) - np.exp(log_p)
    assert_close(grads[0], d_logits_XV @ np.asarray(student[1], np.float64).T, 0.01)
    assert_close(grads[1], np.asarray(student[0], np.float64).T @ d_logits_XV, 0.01)


def test_on_a_mesh():
    """Results on a mesh equal those of one device up to rounding.

    Tokens and the embedding are split. The vocabulary is split where the axis divides it.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.hydrahead_jax.vocabulary.vocabulary_on_a_mesh"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.stdout == "all equal\n", done.stderr[-2000:]

"""Compares a student's distribution of the next token with its teacher's."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hydrahead_jax.sharding import Layout
from hydrahead_jax.vocabulary import softmax
from hydrahead_jax.vocabulary.softmax import Running
from hydrahead_jax.vocabulary.sweep import TokenLoss, sweep
from hydrahead_jax.vocabulary.unembedding import Unembedding


class PairScores(NamedTuple):
    """Says how a student and its teacher predict the next token at X positions.

    Attributes:
      kl_X: KL(teacher || student) in nats.
      nll_X: -log p(target) of the student.
      teacher_nll_X: -log p(target) of the teacher; without gradient, as all that follows.
      hit_X: the target has the student's largest logit.
    """

    kl_X: jax.Array
    nll_X: jax.Array
    teacher_nll_X: jax.Array
    hit_X: jax.Array


class _Both(NamedTuple):
    """Carries the running values of both models.

    Attributes:
      gap_X: sum of exp(teacher's logit - its largest) (teacher's logit - student's).
    """

    teacher: Running
    student: Running
    gap_X: jax.Array


def pair_scores(
    teacher_XD,
    teacher: Unembedding,
    student_XD,
    student: Unembedding,
    targets_X,
    *,
    at_once: int,
    layout: Layout | None = None,
) -> PairScores:
    """Returns scores at X positions, [B, T] with a layout, in one pass; in float32 or better.

    Gradients go to the student only. With z the logits and p the teacher's probabilities, the KL is
    sum p (z_teacher - z_student) - logsumexp(z_teacher) + logsumexp(z_student).

    Args:
      teacher_XD: final hidden states of the teacher.
      teacher: its unembedding.
      student_XD: final hidden states of the student, whose width may differ.
      student: its unembedding.
      targets_X: int32, the tokens that follow.
      at_once: entries of the vocabulary whose logits exist at one time.
      layout: how the arrays lie on devices.
    """
    models = ((teacher_XD, teacher), (student_XD, student))
    return sweep(_LOSS, models, targets_X, at_once=at_once, layout=layout)


def _start(targets_X, dtype) -> _Both:
    running = softmax.start(targets_X, dtype)
    return _Both(running, running, running.sum_X)


def _update(both: _Both, targets_X, logits, span) -> _Both:
    is_target_XC = softmax.is_target(span, targets_X)
    teacher, keep_X, exp_XC = softmax.add(both.teacher, logits[0], is_target_XC)
    student, _, _ = softmax.add(both.student, logits[1], is_target_XC)
    gap_X = both.gap_X * keep_X + jnp.sum(exp_XC * (logits[0] - logits[1]), axis=-1)
    return _Both(teacher, student, gap_X)


def _merge(both: _Both, axis: str) -> _Both:
    teacher, keep = softmax.merge(both.teacher, axis)
    student, _ = softmax.merge(both.student, axis)
    return _Both(teacher, student, jax.lax.psum(both.gap_X * keep, axis))


def _finish(both: _Both, targets_X):
    teacher, student, gap_X = both
    kl_X = gap_X / teacher.sum_X - teacher.log_sum_X + student.log_sum_X
    scores = PairScores(kl_X, student.nll_X, teacher.nll_X, student.hit_X)
    return scores, (teacher.log_sum_X, student.log_sum_X)


def _gradient(targets_X, log_sums, d_scores: PairScores, logits, span):
    p_XC, q_XC = (
        jnp.exp(logits_XC - log_sum_X[:, None])
        for logits_XC, log_sum_X in zip(logits, log_sums, strict=True)
    )
    d_logits_XC = d_scores.kl_X[:, None] * (q_XC - p_XC)
    is_target_XC = softmax.is_target(span, targets_X)
    return d_logits_XC + d_scores.nll_X[:, None] * (q_XC - is_target_XC)


_LOSS = TokenLoss(_start, _update, _merge, _finish, _gradient)

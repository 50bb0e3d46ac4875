"""Compares a student's distribution with the stored part of its teacher's.

That part is the k most probable tokens, and the mass of all others as one bucket.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hydrahead_jax.sharding import Layout
from hydrahead_jax.vocabulary import softmax
from hydrahead_jax.vocabulary.softmax import Running
from hydrahead_jax.vocabulary.sweep import TokenLoss, sweep
from hydrahead_jax.vocabulary.unembedding import Unembedding


class Kept(NamedTuple):
    """Stores the most probable part of a teacher's distribution.

    Attributes:
      ids_XK: the K most probable tokens, int32; no token twice.
      log_p_XK: their log probabilities, in any precision.
      tail_X: probability of all other tokens.
    """

    ids_XK: jax.Array
    log_p_XK: jax.Array
    tail_X: jax.Array

    def normalised(self) -> "Kept":
        """Returns it in float32 or better, shifted so that the K tokens and the tail sum to 1."""
        wide = jnp.promote_types(self.log_p_XK.dtype, jnp.float32)
        log_p_XK = self.log_p_XK.astype(wide)
        shift_X = jnp.log1p(-self.tail_X) - jax.nn.logsumexp(log_p_XK, axis=-1)
        return self._replace(log_p_XK=log_p_XK + shift_X[..., None])


class KeptScores(NamedTuple):
    """Says how well a student agrees with its teacher and the target at X positions.

    Attributes:
      kl_X: KL over the K tokens and the bucket; at most the KL over the complete vocabulary.
      nll_X: -log p(target) of the student.
      hit_X: the target has the student's largest logit.
    """

    kl_X: jax.Array
    nll_X: jax.Array
    hit_X: jax.Array


class _Parts(NamedTuple):
    """Carries the student's running values.

    Attributes:
      all: softmax over the vocabulary.
      tail: softmax without the stored tokens.
      kept_XK: logits of the stored tokens.
    """

    all: Running
    tail: Running
    kept_XK: jax.Array


def kept_scores(
    kept: Kept,
    student_XD,
    student: Unembedding,
    targets_X,
    *,
    at_once: int,
    layout: Layout | None = None,
) -> KeptScores:
    """Returns scores at X positions, [B, T] with a layout, in one pass; in float32 or better.

    The KL is sum p log(p / q) over the stored tokens plus p_tail log(p_tail / q_tail). q_tail is
    the sum over the dropped tokens; computing 1 - sum(kept) would lose precision.

    Args:
      kept: stored part of the teacher's distribution, normalised.
      student_XD: final hidden states of the student.
      student: its unembedding.
      targets_X: int32, the tokens that follow.
      at_once: entries of the vocabulary whose logits exist at one time.
      layout: how the arrays lie on devices.
    """
    models = ((student_XD, student),)
    return sweep(_LOSS, models, (kept, targets_X), at_once=at_once, layout=layout)


def _start(tokens, dtype) -> _Parts:
    kept, targets_X = tokens
    running = softmax.start(targets_X, dtype)
    return _Parts(running, running, jnp.zeros(kept.ids_XK.shape, dtype))


def _update(parts: _Parts, tokens, logits, span) -> _Parts:
    kept, targets_X = tokens
    is_target_XC = softmax.is_target(span, targets_X)
    at_XK, is_here_XK = _positions(kept.ids_XK, span)
    found_XK = jnp.take_along_axis(logits[0], jnp.where(is_here_XK, at_XK, 0), axis=1)
    tail, _, _ = softmax.add(parts.tail, _without(logits[0], at_XK), is_target_XC)
    return _Parts(
        softmax.add(parts.all, logits[0], is_target_XC)[0],
        tail,
        parts.kept_XK + jnp.where(is_here_XK, found_XK, 0.0),
    )


def _merge(parts: _Parts, axis: str) -> _Parts:
    every, _ = softmax.merge(parts.all, axis)
    tail, _ = softmax.merge(parts.tail, axis)
    return _Parts(every, tail, jax.lax.psum(parts.kept_XK, axis))


def _finish(parts: _Parts, tokens):
    kept, _ = tokens
    log_sum_X, log_tail_X = parts.all.log_sum_X, parts.tail.log_sum_X
    log_q_XK = parts.kept_XK - log_sum_X[:, None]
    kl_X = jnp.sum(jnp.exp(kept.log_p_XK) * (kept.log_p_XK - log_q_XK), axis=-1)
    has_tail_X = kept.tail_X > 0
    log_tail_p_X = jnp.log(jnp.where(has_tail_X, kept.tail_X, 1.0))
    log_ratio_X = log_tail_p_X - (log_tail_X - log_sum_X)
    kl_X += jnp.where(has_tail_X, kept.tail_X * log_ratio_X, 0.0)
    return KeptScores(kl_X, parts.all.nll_X, parts.all.hit_X), (log_sum_X, log_tail_X)


def _gradient(tokens, log_sums, d_scores: KeptScores, logits, span):
    kept, targets_X = tokens
    log_sum_X, log_tail_X = log_sums
    at_XK, _ = _positions(kept.ids_XK, span)
    q_XC = jnp.exp(logits[0] - log_sum_X[:, None])
    of_tail_XC = jnp.exp(_without(logits[0], at_XK) - log_tail_X[:, None])
    p_XC = jnp.where(kept.tail_X[:, None] > 0, kept.tail_X[:, None] * of_tail_XC, 0.0)
    rows_X1 = jnp.arange(len(at_XK))[:, None]
    p_XC = p_XC.at[rows_X1, at_XK].add(jnp.exp(kept.log_p_XK).astype(p_XC.dtype), mode="drop")
    is_target_XC = softmax.is_target(span, targets_X)
    d_logits_XC = d_scores.kl_X[:, None] * (q_XC - p_XC)
    return d_logits_XC + d_scores.nll_X[:, None] * (q_XC - is_target_XC)


def _positions(ids_XK, span):
    """Says where in the span the stored tokens stand, and whether they do.

    A place is the span's width if the token is elsewhere.
    """
    at_XK = ids_XK - span.ids_C[0]
    inside_XK = (at_XK >= 0) & (at_XK < span.width)
    is_here_XK = inside_XK & span.is_new_C[jnp.where(inside_XK, at_XK, 0)]
    return jnp.where(is_here_XK, at_XK, span.width), is_here_XK


def _without(logits_XC, at_XK):
    rows_X1 = jnp.arange(len(at_XK))[:, None]
    return logits_XC.at[rows_X1, at_XK].set(softmax.NONE, mode="drop")


_LOSS = TokenLoss(_start, _update, _merge, _finish, _gradient)

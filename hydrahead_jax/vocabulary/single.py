"""Computes the cross-entropy of the tokens that follow."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hydrahead_jax.sharding import Layout
from hydrahead_jax.vocabulary import softmax
from hydrahead_jax.vocabulary.sweep import TokenLoss, sweep
from hydrahead_jax.vocabulary.unembedding import Unembedding


class TokenScores(NamedTuple):
    """Says how well a model predicts the next token at X positions.

    Attributes:
      nll_X: -log p(target).
      hit_X: the target has the largest logit.
    """

    nll_X: jax.Array
    hit_X: jax.Array


def token_scores(
    hidden_XD, unembedding: Unembedding, targets_X, *, at_once: int, layout: Layout | None = None
) -> TokenScores:
    """Returns next-token scores at X positions, [B, T] with a layout; in float32 or better.

    Args:
      hidden_XD: final hidden states.
      unembedding: of the model.
      targets_X: int32, the tokens that follow.
      at_once: entries of the vocabulary whose logits exist at one time.
      layout: how the arrays lie on devices.
    """
    models = ((hidden_XD, unembedding),)
    return sweep(_LOSS, models, targets_X, at_once=at_once, layout=layout)


def _update(running, targets_X, logits, span):
    return softmax.add(running, logits[0], softmax.is_target(span, targets_X))[0]


def _finish(running, targets_X):
    return TokenScores(running.nll_X, running.hit_X), running.log_sum_X


def _gradient(targets_X, log_sum_X, d_scores: TokenScores, logits, span):
    p_XC = jnp.exp(logits[0] - log_sum_X[:, None])
    return d_scores.nll_X[:, None] * (p_XC - softmax.is_target(span, targets_X))


_LOSS = TokenLoss(
    softmax.start,
    _update,
    lambda running, axis: softmax.merge(running, axis)[0],
    _finish,
    _gradient,
)

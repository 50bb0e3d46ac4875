"""Computes the softmax online: sums of exponentials relative to the largest logit so far."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hydrahead_jax.vocabulary.unembedding import Span

NONE = -1e30  # below every logit


class Running(NamedTuple):
    """Carries the softmax over the logits so far.

    Attributes:
      top_X: largest logit.
      sum_X: sum of exp(logit - top_X).
      target_X: logit of the target.
    """

    top_X: jax.Array
    sum_X: jax.Array
    target_X: jax.Array

    @property
    def log_sum_X(self):
        return self.top_X + jnp.log(self.sum_X)

    @property
    def nll_X(self):
        """Returns -log p(target)."""
        return self.log_sum_X - self.target_X

    @property
    def hit_X(self):
        """Says whether the target has the largest logit."""
        return self.target_X >= self.top_X


def start(targets_X, dtype) -> Running:
    zeros_X = jnp.zeros(targets_X.shape, dtype)
    return Running(zeros_X + NONE, zeros_X, zeros_X)


def add(running: Running, logits_XC, is_target_XC):
    """Adds logits to the running softmax.

    Returns:
      The new state, the factor that rescales earlier sums, and exp(logits - max).
    """
    top_X = jnp.maximum(running.top_X, jnp.max(logits_XC, axis=-1))
    keep_X = jnp.exp(running.top_X - top_X)
    exp_XC = jnp.exp(logits_XC - top_X[:, None])
    target_X = running.target_X + jnp.sum(jnp.where(is_target_XC, logits_XC, 0.0), axis=-1)
    return (
        Running(top_X, running.sum_X * keep_X + jnp.sum(exp_XC, axis=-1), target_X),
        keep_X,
        exp_XC,
    )


def merge(running: Running, axis: str):
    """Merges the running softmax of all ranks along a mesh axis.

    Returns:
      The merged state, and the factor by which this rank rescales its own sums.
    """
    top = jax.lax.pmax(running.top_X, axis)
    keep = jnp.exp(running.top_X - top)
    total = jax.lax.psum(running.sum_X * keep, axis)
    return Running(top, total, jax.lax.psum(running.target_X, axis)), keep


def is_target(span: Span, targets_X):
    return (span.ids_C == targets_X[:, None]) & span.is_new_C

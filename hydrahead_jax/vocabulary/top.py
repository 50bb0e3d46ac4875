"""Finds the most probable tokens of a model, and the probability of all others."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hydrahead_jax.sharding import Layout
from hydrahead_jax.vocabulary import softmax
from hydrahead_jax.vocabulary.kept import Kept
from hydrahead_jax.vocabulary.softmax import Running
from hydrahead_jax.vocabulary.sweep import TokenLoss, sweep
from hydrahead_jax.vocabulary.unembedding import Unembedding


class _Top(NamedTuple):
    """Carries the running values from one tile of the vocabulary to the next.

    Attributes:
      all: running softmax over the vocabulary so far.
      tail_X: sum of exponentials of what is not among the K, relative to the same largest logit.
      logits_XK: the K largest, falling.
      ids_XK: their tokens.
    """

    all: Running
    tail_X: jax.Array
    logits_XK: jax.Array
    ids_XK: jax.Array


def top_tokens(
    hidden_XD, unembedding: Unembedding, count: int, *, at_once: int, layout: Layout | None = None
) -> Kept:
    """Returns the `count` most probable tokens at X positions, [B, T] with a layout.

    The tail is a sum over the other tokens, so it is right however small it is.

    Args:
      hidden_XD: final hidden states.
      unembedding: of the model.
      count: how many tokens to return, at most the vocabulary.
      at_once: entries of the vocabulary whose logits exist at one time.
      layout: how the arrays lie on devices.
    """
    none_X = jnp.full(hidden_XD.shape[:-1], -1)
    models = ((hidden_XD, unembedding),)
    return sweep(_loss(count), models, none_X, at_once=at_once, layout=layout)


@functools.cache
def _loss(count: int) -> TokenLoss:
    return TokenLoss(functools.partial(_start, count), _update, _merge, _finish)


def _start(count: int, none_X, dtype) -> _Top:
    running = softmax.start(none_X, dtype)
    logits_XK = jnp.full((len(none_X), count), softmax.NONE, dtype)
    return _Top(running, running.sum_X, logits_XK, jnp.full(logits_XK.shape, -1))


def _update(top: _Top, none_X, logits, span) -> _Top:
    running, keep_X, _ = softmax.add(top.all, logits[0], False)
    ids_XC = jnp.broadcast_to(span.ids_C, logits[0].shape)
    return _largest(running, top.tail_X * keep_X, top, logits[0], ids_XC)


def _merge(top: _Top, axis: str) -> _Top:
    running, keep = softmax.merge(top.all, axis)
    tail = jax.lax.psum(top.tail_X * keep, axis)
    gather = lambda x: jax.lax.all_gather(x, axis, axis=x.ndim - 1, tiled=True)
    none = top._replace(logits_XK=jnp.full_like(top.logits_XK, softmax.NONE))
    tile = jax.vmap(_largest)
    return tile(running, tail, none, gather(top.logits_XK), gather(top.ids_XK))


def _largest(running: Running, tail_X, top: _Top, logits_XC, ids_XC) -> _Top:
    """Returns the K largest of the stored logits and the new ones.

    What is dropped goes to the tail. Of equal logits at the limit only some are stored, so the
    dropped ones are counted.
    """
    logits_XM = jnp.concatenate([top.logits_XK, logits_XC], axis=1)
    ids_XM = jnp.concatenate([top.ids_XK, ids_XC], axis=1)
    kept_XK, at_XK = jax.lax.top_k(logits_XM, top.logits_XK.shape[1])
    least_X1 = kept_XK[:, -1:]
    exp = lambda x: jnp.exp(x - running.top_X[:, None])
    below_X = jnp.sum(jnp.where(logits_XM < least_X1, exp(logits_XM), 0.0), axis=1)
    equal = lambda x: jnp.sum(x == least_X1, axis=1)
    dropped_X = equal(logits_XM) - equal(kept_XK)
    tail_X = tail_X + below_X + dropped_X * exp(least_X1)[:, 0]
    return _Top(running, tail_X, kept_XK, jnp.take_along_axis(ids_XM, at_XK, axis=1))


def _finish(top: _Top, none_X):
    log_p_XK = top.logits_XK - top.all.log_sum_X[:, None]
    return Kept(top.ids_XK, log_p_XK, top.tail_X / top.all.sum_X), None

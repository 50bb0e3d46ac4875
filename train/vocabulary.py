"""Losses over the vocabulary without an array of [tokens, vocabulary].

The logits of a part of the vocabulary are made, used and dropped; the backward pass makes them
again. Sums of exponentials run along with the largest logit so far, as in online softmax.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

_MASKED = -1e30


class TokenScores(NamedTuple):
    """nll_X: -log p(target). hit_X: the target has the largest logit."""

    nll_X: jax.Array
    hit_X: jax.Array


def token_scores(hidden_XD, unembedding_DV, targets_X, *, at_once: int) -> TokenScores:
    """Next-token scores for X positions, `at_once` entries of the vocabulary at a time."""

    def body(carry, chunk):
        top_X, sum_X, target_X = carry
        logits_XC = _logits(hidden_XD, chunk)
        top_X, keep_X, exp_XC = _rescale(top_X, logits_XC)
        is_target_XC = chunk[1] == targets_X[:, None]
        target_X += jnp.sum(jnp.where(is_target_XC, logits_XC, 0.0), axis=-1)
        return (top_X, sum_X * keep_X + jnp.sum(exp_XC, axis=-1), target_X), None

    zeros_X = jnp.zeros(hidden_XD.shape[0], jnp.float32)
    chunks = _chunks(unembedding_DV, at_once)
    start = (zeros_X + _MASKED, zeros_X, zeros_X)
    (top_X, sum_X, target_X), _ = jax.lax.scan(jax.checkpoint(body), start, chunks)
    return TokenScores(top_X + jnp.log(sum_X) - target_X, target_X >= top_X)


def forward_kl(teacher_XD, teacher_DV, student_XD, student_DV, *, at_once: int):
    """KL(teacher || student) in nats at each of X positions.

    With z the logits and p the teacher's probabilities, it is
    sum p (z_teacher - z_student) - logsumexp(z_teacher) + logsumexp(z_student).
    """

    def body(carry, chunks):
        (top_X, sum_X, gap_X), (student_top_X, student_sum_X) = carry
        teacher_XC, student_XC = _logits(teacher_XD, chunks[0]), _logits(student_XD, chunks[1])
        top_X, keep_X, exp_XC = _rescale(top_X, teacher_XC)
        student_top_X, student_keep_X, student_exp_XC = _rescale(student_top_X, student_XC)
        gap_X = gap_X * keep_X + jnp.sum(exp_XC * (teacher_XC - student_XC), axis=-1)
        sum_X = sum_X * keep_X + jnp.sum(exp_XC, axis=-1)
        student_sum_X = student_sum_X * student_keep_X + jnp.sum(student_exp_XC, axis=-1)
        return ((top_X, sum_X, gap_X), (student_top_X, student_sum_X)), None

    zeros_X = jnp.zeros(teacher_XD.shape[0], jnp.float32)
    top_X = zeros_X + _MASKED
    chunks = (_chunks(teacher_DV, at_once), _chunks(student_DV, at_once))
    start = ((top_X, zeros_X, zeros_X), (top_X, zeros_X))
    ((top_X, sum_X, gap_X), (student_top_X, student_sum_X)), _ = jax.lax.scan(
        jax.checkpoint(body), start, chunks
    )
    log_sum_X = top_X + jnp.log(sum_X)
    return gap_X / sum_X - log_sum_X + student_top_X + jnp.log(student_sum_X)


def _chunks(unembedding_DV, at_once: int):
    """Equal parts [Z, C, D] of the vocabulary and the ids in them; -1 fills the last."""
    V = unembedding_DV.shape[1]
    count = -(-V // at_once)
    width = -(-V // count)
    fill = count * width - V
    weight_VD = jnp.pad(unembedding_DV.T, ((0, fill), (0, 0)))
    ids_V = jnp.pad(jnp.arange(V), (0, fill), constant_values=-1)
    return weight_VD.reshape(count, width, -1), ids_V.reshape(count, width)


def _logits(hidden_XD, chunk):
    weight_CD, ids_C = chunk
    logits_XC = jnp.einsum("XD,CD->XC", hidden_XD, weight_CD, preferred_element_type=jnp.float32)
    return jnp.where(ids_C >= 0, logits_XC, _MASKED)


def _rescale(top_X, logits_XC):
    """The new largest logit, the factor for earlier sums, and the exponentials."""
    new_top_X = jax.lax.stop_gradient(jnp.maximum(top_X, jnp.max(logits_XC, axis=-1)))
    return new_top_X, jnp.exp(top_X - new_top_X), jnp.exp(logits_XC - new_top_X[:, None])

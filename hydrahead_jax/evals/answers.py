"""Measures how well a model predicts the answers in documents that hold them."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.models import merge


class AnswerScores(NamedTuple):
    """Holds means over documents.

    Attributes:
      tokens: share of the answers' tokens that are the most probable ones.
      documents: share of documents all of whose answers are; greedy generation gives the same.
      loss: nats a token of the answers.
    """

    tokens: float
    documents: float
    loss: float


def answer_scores(
    config: ModelConfig, params: dict, tokens_XT: np.ndarray, answer_XT: np.ndarray, *, batch: int
) -> AnswerScores:
    """Scores documents whose answers the model reads too, each after it has predicted it.

    Args:
      config: of the model; a document may be longer than its trained length.
      params: of the model.
      tokens_XT: int32.
      answer_XT: True at the tokens that count.
      batch: documents a pass.
    """
    documents = len(tokens_XT)
    rows = [np.arange(start, start + batch) % documents for start in range(0, documents, batch)]
    found = [_scores(config, params, tokens_XT[row]) for row in rows]
    hit_XT, loss_XT = (np.concatenate(parts)[:documents] for parts in zip(*found, strict=True))
    answer_XT = answer_XT[:, 1:]
    return AnswerScores(
        float(hit_XT[answer_XT].mean()),
        float((hit_XT | ~answer_XT).all(axis=1).mean()),
        float(loss_XT[answer_XT].mean(dtype=np.float64)),
    )


@functools.partial(jax.jit, static_argnames="config")
def _scores(config: ModelConfig, params: dict, tokens_BT):
    """Returns for each token but the first whether it is the most probable one, and its loss."""
    model = merge(config, params)
    output = model(tokens_BT[:, :-1], tap=lambda taps: None)
    log_p_BTV, target_BT = jax.nn.log_softmax(model.logits(output.hidden_BTD)), tokens_BT[:, 1:]
    loss_BT = -jnp.take_along_axis(log_p_BTV, target_BT[..., None], axis=-1)[..., 0]
    return jnp.argmax(log_p_BTV, axis=-1) == target_BT, loss_BT

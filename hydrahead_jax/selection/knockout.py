"""Do the scores name the heads that matter? Take heads away and watch accuracy."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.mixers import HeadEdit
from hydrahead_jax.models import merge
from hydrahead_jax.selection.batches import padded_batches
from hydrahead_jax.selection.ranking import Head

Accuracy = Callable[[dict[int, HeadEdit]], float]


def mean_heads(
    config: ModelConfig, params: dict, tokens_BT: np.ndarray, *, batch: int = 8
) -> np.ndarray:
    """Mean output of each head [L, N, H] over all positions of calibration documents."""
    total = 0.0
    for (tokens,), real in padded_batches((np.asarray(tokens_BT),), batch):
        weights_B = (np.arange(len(tokens)) < real).astype(np.float32)
        total = total + np.asarray(_sum_over_batch(config, params, tokens, weights_B), np.float64)
    return (total / len(tokens_BT)).astype(np.float32)


def knock_out_edits(
    removed: Sequence[Head], mean_LNH: Float[np.ndarray, "L N H"]
) -> dict[int, HeadEdit]:
    """Edits of all layers, so that every set of heads runs as one compiled function."""
    mask_LN = np.zeros(mean_LNH.shape[:2], np.float32)
    for head in removed:
        mask_LN[head] = 1.0
    return {
        layer: HeadEdit(jnp.asarray(mask_N)[None], jnp.asarray(mean_NH)[None, None])
        for layer, (mask_N, mean_NH) in enumerate(zip(mask_LN, mean_LNH, strict=True))
    }


def knock_out(
    order: Sequence[Head],
    counts: Sequence[int],
    mean_LNH: Float[np.ndarray, "L N H"],
    accuracy: Accuracy,
) -> np.ndarray:
    """Accuracy [len(counts)] with the first `count` heads of the order mean-ablated.

    Args:
      order: of all heads, such as `ranking` or `random_order`.
      counts: numbers of heads to remove, each from 0 to the length of the order.
      mean_LNH: what stands in for a removed head, see `mean_heads`.
      accuracy: from edits to accuracy, such as `teacher_forced_accuracy` or a generating evaluator.
    """
    points = [accuracy(knock_out_edits(order[:count], mean_LNH)) for count in counts]
    return np.array(points, float)


def teacher_forced_accuracy(
    config: ModelConfig,
    params: dict,
    tokens_BT: np.ndarray,
    answer_BT: np.ndarray,
    *,
    batch: int = 8,
) -> Accuracy:
    """The fraction of documents in which every answer token is the argmax, given the ones before.

    With greedy decoding that is the same as exact match by generation.

    Args:
      config: of any model.
      params: of that model.
      tokens_BT: documents that contain their answers.
      answer_BT: True on answer tokens, the same in every row.
      batch: documents at a time.

    Raises:
      ValueError: the answers do not stand at the same places in every document.
    """
    if (answer_BT != answer_BT[:1]).any():
        raise ValueError("the answers must stand at the same places in every document")
    at_J = tuple(int(t) for t in np.flatnonzero(answer_BT[0]))

    def accuracy(edits: dict[int, HeadEdit]) -> float:
        correct = 0
        for (tokens,), real in padded_batches((np.asarray(tokens_BT),), batch):
            correct += int(_exact_match(config, at_J, params, tokens, edits)[:real].sum())
        return correct / len(tokens_BT)

    return accuracy


@functools.partial(jax.jit, static_argnames="config")
def _sum_over_batch(config: ModelConfig, params: dict, tokens_BT, weights_B):
    taps = merge(config, params)(tokens_BT).taps
    means_LBNH = jnp.stack([tap.heads_BTNH.mean(axis=1, dtype=jnp.float32) for tap in taps])
    return jnp.einsum("LBNH,B->LNH", means_LBNH, weights_B)


@functools.partial(jax.jit, static_argnames=("config", "at_J"))
def _exact_match(config: ModelConfig, at_J: tuple[int, ...], params: dict, tokens_BT, edits):
    model = merge(config, params)
    at_J = jnp.array(at_J)
    hidden_BJD = model(tokens_BT, edits=edits).hidden_BTD[:, at_J - 1]
    guess_BJ = jnp.argmax(model.logits(hidden_BJD), axis=-1)
    return jnp.all(guess_BJ == tokens_BT[:, at_J], axis=1)

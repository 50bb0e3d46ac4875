"""Defines all effects by one or two complete forwards per head; tests compare with them."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.mixers import HeadEdit
from hydrahead_jax.models import merge
from hydrahead_jax.selection.effects.readout import readout, readout_positions
from hydrahead_jax.selection.effects.sender import Receivers
from hydrahead_jax.selection.probes.pairs import ProbePairs
from hydrahead_jax.selection.scores.ranking import Head


def clean_readouts(config: ModelConfig, params: dict, pairs: ProbePairs):
    """Returns m(x) and m(x')."""
    return _both(config, params, pairs)[0]


def receiver_readouts(
    config: ModelConfig, params: dict, pairs: ProbePairs, heads: Sequence[Head]
) -> np.ndarray:
    """Returns m(x) [B, len(heads)] with each head taken from x' at every position.

    All heads of later layers, hence their mixers, are frozen to their outputs in x.
    """
    _, (clean, corrupted) = _both(config, params, pairs)
    readouts_XB = []
    for layer, head in heads:
        frozen = np.zeros((config.layers, config.query_heads))
        frozen[layer + 1 :] = 1
        edits = _edits(frozen, clean, {(layer, head): corrupted})
        readouts_XB.append(_run(config, params, pairs, pairs.tokens_BT, edits)[0])
    return np.stack(readouts_XB, axis=1)


def sender_readouts(
    config: ModelConfig,
    params: dict,
    pairs: ProbePairs,
    heads: Sequence[Head],
    receivers: Receivers,
) -> np.ndarray:
    """Returns m(x) [B, len(heads)] where each head reaches the answer through receivers only.

    The first pass takes the head from x'; the receivers of later layers are live, all other heads
    are frozen to x. The second pass runs x with these receivers as they were in that pass, all
    others frozen.
    """
    _, (clean, corrupted) = _both(config, params, pairs)
    readouts_XB = []
    for layer, head in heads:
        frozen = np.ones((config.layers, config.query_heads))
        for k in range(layer + 1, config.layers):
            frozen[k, list(receivers[k])] = 0
        edits = _edits(frozen, clean, {(layer, head): corrupted})
        _, sent = _run(config, params, pairs, pairs.tokens_BT, edits)
        heard = {tuple(map(int, h)): sent for h in np.argwhere(frozen == 0)}
        edits = _edits(np.ones_like(frozen), clean, heard)
        readouts_XB.append(_run(config, params, pairs, pairs.tokens_BT, edits)[0])
    return np.stack(readouts_XB, axis=1)


def total_readouts(
    config: ModelConfig, params: dict, pairs: ProbePairs, heads: Sequence[Head]
) -> np.ndarray:
    """Returns m(x) [B, len(heads)] with each head taken from x' everywhere and nothing frozen."""
    _, (clean, corrupted) = _both(config, params, pairs)
    free = np.zeros((config.layers, config.query_heads))
    readouts_XB = [
        _run(config, params, pairs, pairs.tokens_BT, _edits(free, clean, {head: corrupted}))[0]
        for head in heads
    ]
    return np.stack(readouts_XB, axis=1)


def _both(config, params, pairs):
    """Returns the readouts, and the heads of every layer, each in x and in x'."""
    runs = (_run(config, params, pairs, x_BT, {}) for x_BT in (pairs.tokens_BT, pairs.corrupt_BT))
    return tuple(zip(*runs, strict=True))


def _edits(frozen_LN: np.ndarray, clean: list, others: dict[Head, list]) -> dict[int, HeadEdit]:
    """Makes edits that freeze heads.

    Heads of `others` take their value there; of the rest, the frozen ones take that in `clean`.
    """
    mask_LN, values = frozen_LN.copy(), list(clean)
    for (layer, head), source in others.items():
        mask_LN[layer, head] = 1
        values[layer] = values[layer].at[:, :, head].set(source[layer][:, :, head])
    return {
        layer: HeadEdit(jnp.asarray(mask_LN[layer], jnp.float32)[None], value)
        for layer, value in enumerate(values)
    }


def _run(config, params, pairs: ProbePairs, tokens_BT, edits):
    spans = (pairs.answer_BJ, pairs.distractor_BJ)
    arrays = [jnp.asarray(x) for x in (tokens_BT, pairs.segment_ids_BT, *spans)]
    return _edited(config, params, *arrays, edits)


@functools.partial(jax.jit, static_argnames="config")
def _edited(
    config: ModelConfig, params, tokens_BT, segment_ids_BT, answer_BJ, distractor_BJ, edits
):
    model = merge(config, params)
    output = model(tokens_BT, segment_ids_BT=segment_ids_BT, edits=edits)
    at = readout_positions(tokens_BT.shape[1], answer_BJ.shape[1])
    logits_BJV = model.logits(output.hidden_BTD[:, at])
    pick = lambda ids_BJ: jnp.take_along_axis(
        logits_BJV, jnp.maximum(ids_BJ, 0)[..., None], axis=-1
    )[..., 0]
    heads = [tap.heads_BTNH for tap in output.taps]
    return readout(pick(answer_BJ), pick(distractor_BJ), answer_BJ), heads

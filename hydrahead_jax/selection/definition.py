"""The definition of the receiver score, one full forward per head: what tests compare with."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.mixers import HeadEdit
from hydrahead_jax.models import merge
from hydrahead_jax.selection.probes import ProbePairs
from hydrahead_jax.selection.readout import readout, readout_positions
from hydrahead_jax.selection.receiver import PatchedReadouts


def patched_readouts(config: ModelConfig, params: dict, pairs: ProbePairs) -> PatchedReadouts:
    """m(x), m(x') and, for each head, m(x) with the head's output taken from x' at every position
    and all heads of later layers, hence their mixers, frozen to their clean outputs."""
    pairs = ProbePairs(*(jnp.asarray(a) for a in pairs))
    B = len(pairs.tokens_BT)
    clean = _heads(config, params, pairs.tokens_BT)
    corrupted = _heads(config, params, pairs.corrupt_BT)
    run = functools.partial(_edited_readout, config, params)
    free = {layer: _edit(np.zeros(config.query_heads), B, heads) for layer, heads in clean.items()}
    spans = (pairs.answer_BJ, pairs.distractor_BJ)
    patched_BLN = np.zeros((B, config.layers, config.query_heads))
    for layer in range(config.layers):
        frozen = {
            later: _edit(np.ones(config.query_heads), B, clean[later])
            for later in range(layer + 1, config.layers)
        }
        for head in range(config.query_heads):
            patch = _edit(np.eye(config.query_heads)[head], B, corrupted[layer])
            edits = {**free, **frozen, layer: patch}
            patched_BLN[:, layer, head] = run(pairs.tokens_BT, edits, *spans)
    return PatchedReadouts(
        np.asarray(run(pairs.tokens_BT, free, *spans)),
        np.asarray(run(pairs.corrupt_BT, free, *spans)),
        patched_BLN,
    )


@functools.partial(jax.jit, static_argnames="config")
def _heads(config: ModelConfig, params: dict, tokens_BT) -> dict[int, jax.Array]:
    return {i: tap.heads_BTNH for i, tap in enumerate(merge(config, params)(tokens_BT).taps)}


@functools.partial(jax.jit, static_argnames="config")
def _edited_readout(config: ModelConfig, params: dict, tokens_BT, edits, answer_BJ, distractor_BJ):
    model = merge(config, params)
    at = readout_positions(tokens_BT.shape[1], answer_BJ.shape[1])
    logits_BJV = model.logits(model(tokens_BT, edits=edits).hidden_BTD)[:, at]
    ids_BJ2 = jnp.stack([answer_BJ, distractor_BJ], axis=-1)
    answer_and_distractor_BJ2 = jnp.take_along_axis(logits_BJV, ids_BJ2, axis=-1)
    return readout(answer_and_distractor_BJ2[..., 0], answer_and_distractor_BJ2[..., 1])


def _edit(mask_N: np.ndarray, batch: int, value_BTNH: jax.Array) -> HeadEdit:
    return HeadEdit(jnp.broadcast_to(jnp.asarray(mask_N), (batch, len(mask_N))), value_BTNH)

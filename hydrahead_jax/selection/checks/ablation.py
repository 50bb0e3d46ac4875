"""Removes heads: a head's mean output replaces its output."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.mixers import HeadEdit
from hydrahead_jax.models import merge
from hydrahead_jax.selection.effects.batches import padded_batches
from hydrahead_jax.selection.scores.ranking import Head


def mean_heads(
    config: ModelConfig,
    params: dict,
    tokens_BT: Int[np.ndarray, "B T"],
    segment_ids_BT: Int[np.ndarray, "B T"] | None = None,
    *,
    batch: int = 4,
) -> np.ndarray:
    """Returns the mean output of each head over calibration documents, float32 [L, N, H].

    Args:
      config: of any model.
      params: of that model.
      tokens_BT: the documents.
      segment_ids_BT: 0 on padding, which does not count; None is no padding.
      batch: documents at a time.
    """
    tokens_BT = np.asarray(tokens_BT, np.int32)
    ids_BT = np.ones_like(tokens_BT) if segment_ids_BT is None else np.asarray(segment_ids_BT)
    total = 0.0
    for (tokens, ids), real in padded_batches((tokens_BT, ids_BT), batch):
        counted_BT = (ids != 0) & (np.arange(len(ids)) < real)[:, None]
        total = total + np.asarray(_sum(config, params, tokens, ids, counted_BT), np.float64)
    return (total / np.count_nonzero(ids_BT)).astype(np.float32)


def knock_out_edits(
    removed: Sequence[Head], mean_LNH: Float[np.ndarray, "L N H"]
) -> dict[int, HeadEdit]:
    """Makes edits of all layers, so that every set of heads runs as one compiled function."""
    mask_LN = np.zeros(mean_LNH.shape[:2], np.float32)
    for head in removed:
        mask_LN[head] = 1.0
    return {
        layer: HeadEdit(jnp.asarray(mask_N)[None], jnp.asarray(mean_NH)[None, None])
        for layer, (mask_N, mean_NH) in enumerate(zip(mask_LN, mean_LNH, strict=True))
    }


@functools.partial(jax.jit, static_argnames="config")
def _sum(config: ModelConfig, params: dict, tokens_BT, ids_BT, counted_BT) -> Array:
    taps = merge(config, params)(tokens_BT, segment_ids_BT=ids_BT).taps
    weights_BT = counted_BT.astype(jnp.float32)
    sum_NH = lambda tap: jnp.einsum(
        "BTNH,BT->NH", tap.heads_BTNH, weights_BT, preferred_element_type=jnp.float32
    )
    return jnp.stack([sum_NH(tap) for tap in taps])

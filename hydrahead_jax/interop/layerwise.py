"""Runs a forward that holds one layer in float32 at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.interop.key_table import ParamPath, get_param, key_table, set_param
from hydrahead_jax.models import layer_config, merge_block
from hydrahead_jax.models.stream import make_stream
from hydrahead_jax.ops.norms import rms_norm

_WORDS = 8192
_ULP = 2.0**-23


def rounded_logits(
    config: ModelConfig,
    params: dict,
    dtype,
    tokens_BT: np.ndarray,
    real_BT: np.ndarray,
    *,
    nudge: np.random.Generator | None = None,
) -> np.ndarray:
    """Computes in float32 what the parameters give once they were rounded for an export.

    Args:
      config: of the model.
      params: parameters of the model, not rounded.
      dtype: dtype of the export; what an export stores in float32 is not rounded.
      tokens_BT: int32.
      real_BT: 0 on padding.
      nudge: moves every number of the layers by its last float32 digit, up or down at random.

    Returns:
      Logits [B, T, V], without meaning on padding.
    """
    part = functools.partial(_rounded, config, params, dtype, nudge)
    with jax.default_matmul_precision("highest"):
        x_BTD = _nudged(_round(params["w_embed_VD"][tokens_BT], dtype), nudge)
        for layer in range(config.layers):
            x_BTD = _layer(layer_config(config, layer), part(("layers", layer)), x_BTD, real_BT)
        hidden_BTD = rms_norm(x_BTD, part(("final_norm_D",)), eps=config.rms_eps)
        return _logits(config, params, dtype, hidden_BTD)


def _logits(config: ModelConfig, params: dict, dtype, hidden_BTD) -> np.ndarray:
    """Computes the logits a piece of the vocabulary at a time."""
    pieces = []
    for first in range(0, config.vocab, _WORDS):
        words = slice(first, first + _WORDS)
        if config.tied_embeddings:
            w_DV = _round(params["w_embed_VD"][words], dtype).T
        else:
            w_DV = _round(params["w_unembed_DV"][:, words], dtype)
        pieces.append(np.asarray(hidden_BTD @ w_DV))
    return np.concatenate(pieces, axis=-1)


@functools.partial(jax.jit, static_argnames="config")
def _layer(config: ModelConfig, params: dict, x_BTD, segment_ids_BT) -> jax.Array:
    stream = make_stream(segment_ids_BT.shape, segment_ids_BT, None, None, training=False)
    return merge_block(config, params)(x_BTD, stream, None, None)[0]


def _rounded(config: ModelConfig, params: dict, dtype, nudge, prefix: ParamPath):
    """Returns the parameters at or below `prefix`, rounded and widened again."""
    out = {}
    for row in key_table(config):
        for path in row.paths:
            if path[: len(prefix)] == prefix:
                stored = jnp.float32 if row.always_float32 else dtype
                set_param(out, path, _nudged(_round(get_param(params, path), stored), nudge))
    return get_param(out, prefix)


def _round(array, dtype) -> jax.Array:
    return jnp.asarray(array, dtype).astype(jnp.float32)


def _nudged(array_X: jax.Array, nudge: np.random.Generator | None) -> jax.Array:
    if nudge is None:
        return array_X
    up_X = nudge.integers(2, size=array_X.shape, dtype=np.int8)
    return array_X * jnp.where(up_X, np.float32(1 + _ULP), np.float32(1 - _ULP))

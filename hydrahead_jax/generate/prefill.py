"""Reads a prompt into the cache."""

import jax
import jax.numpy as jnp

from hydrahead_jax.cache import Cache, KVFormats, init_cache
from hydrahead_jax.config import ModelConfig
from hydrahead_jax.mixers import HeadEdit
from hydrahead_jax.models import merge


def prefill(
    config: ModelConfig,
    params: dict,
    tokens_BT,
    segment_ids_BT,
    *,
    capacity: int,
    chunk: int | None = None,
    edits: dict[int, HeadEdit] | None = None,
    kv_format: KVFormats = None,
) -> tuple[jax.Array, Cache]:
    """Runs prompts that are padded on the left.

    Args:
      config: of the model.
      params: of the model; the cache takes the dtype of the embedding.
      tokens_BT: int32.
      segment_ids_BT: 1 on tokens, 0 on padding.
      capacity: tokens that the cache has room for.
      chunk: tokens a pass, which bounds the memory of attention scores; all at once if None. It
        must divide T.
      edits: made at every token, see `generate`.
      kv_format: see `init_cache`.

    Returns:
      The logits after the last token, float32 [B, V], and the cache.
    """
    B, T = tokens_BT.shape
    model = merge(config, params)
    cache = init_cache(config, B, capacity, params["w_embed_VD"].dtype, kv_format)
    if chunk is None or chunk >= T:
        output = model(tokens_BT, segment_ids_BT=segment_ids_BT, cache=cache, edits=edits)
        return model.logits(output.hidden_BTD[:, -1]), output.cache

    def step(cache, inputs):
        tokens_BC, segment_ids_BC = inputs
        output = model(tokens_BC, segment_ids_BT=segment_ids_BC, cache=cache, edits=edits)
        return output.cache, output.hidden_BTD[:, -1]

    split = lambda x_BT: jnp.moveaxis(x_BT.reshape(B, T // chunk, chunk), 1, 0)
    cache, hidden_ZBD = jax.lax.scan(step, cache, (split(tokens_BT), split(segment_ids_BT)))
    return model.logits(hidden_ZBD[-1]), cache

"""Compares the next-token distributions of a model with a raw and with a packed KV cache."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from hydrahead_jax.cache import LayerFormats, init_cache
from hydrahead_jax.config import ModelConfig
from hydrahead_jax.models import merge


def next_token(
    config: ModelConfig,
    params: dict,
    tokens_XT: np.ndarray,
    kv_formats: LayerFormats,
    *,
    batch: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """Returns means over all tokens of stretches of text but each one's first.

    Tokens are read one at a time, as in decoding: every one that counts sees all tokens, its own
    included, as the cache stores them. Several at a time would see their own chunk as given. The
    raw cache takes the same steps beside the other, so that no logits are stored and the format
    alone makes the difference.

    Returns:
      "text_loss" and "raw_text_loss" in nats a token; "kl", of the packed cache's distribution from
      the raw cache's, in nats; "same_token", the share of tokens that are the most probable ones
      with both.
    """
    batches = np.array_split(tokens_XT, -(-len(tokens_XT) // batch))
    found = []
    for number, tokens_BT in enumerate(batches):
        found.append(jax.tree.map(np.asarray, _compare(config, params, tokens_BT, kv_formats)))
        progress(number + 1, len(batches))
    mean = lambda name: float(
        np.concatenate([one[name].ravel() for one in found]).mean(dtype=float)
    )
    return {name: mean(name) for name in found[0]}


@functools.partial(jax.jit, static_argnames=("config", "kv_formats"))
def _compare(config: ModelConfig, params: dict, tokens_BT, kv_formats: LayerFormats) -> dict:
    """Returns each number of `next_token` for every token that is predicted, [T - 1, B]."""
    model = merge(config, params)
    B, T = tokens_BT.shape
    new = lambda formats: init_cache(config, B, T, model.w_embed_VD[...].dtype, formats)

    def log_probabilities(token_B, cache):
        output = model(token_B[:, None], cache=cache)
        return jax.nn.log_softmax(model.logits(output.hidden_BTD[:, 0])), output.cache

    def step(caches, tokens):
        token_B, target_B = tokens
        (raw_BV, raw), (packed_BV, packed) = (log_probabilities(token_B, c) for c in caches)
        loss = lambda log_p_BV: -jnp.take_along_axis(log_p_BV, target_B[:, None], axis=1)[:, 0]
        best = lambda log_p_BV: jnp.argmax(log_p_BV, axis=-1)
        return (raw, packed), {
            "text_loss": loss(packed_BV),
            "raw_text_loss": loss(raw_BV),
            "kl": jnp.sum(jnp.exp(raw_BV) * (raw_BV - packed_BV), axis=-1),
            "same_token": (best(raw_BV) == best(packed_BV)).astype(jnp.float32),
        }

    _, found = jax.lax.scan(step, (new(None), new(kv_formats)), (tokens_BT.T[:-1], tokens_BT.T[1:]))
    return found

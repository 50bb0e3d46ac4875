"""Reads tokens into the cache of one sequence, and draws replies greedily."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.turns.cache_size import CacheSize
from hydrahead_jax.cache import Cache, KVFormats, init_cache
from hydrahead_jax.config import ModelConfig
from hydrahead_jax.models import merge


class Reader:
    """Runs a model on one sequence at a time, with caches of one format."""

    def __init__(
        self, config: ModelConfig, params: dict, kv_format: KVFormats, *, capacity: int, dtype
    ):
        """Takes the tokens that a cache has room for, and the dtype of what is not encoded."""
        self.config = config
        self.params = params
        self.size = CacheSize.of(config, kv_format, dtype)
        self.empty = init_cache(config, 1, capacity, dtype, kv_format)

    def read(
        self, cache: Cache, tokens: Sequence[int] | np.ndarray, chunk: int | None = None
    ) -> tuple[int, Cache]:
        """Reads tokens, `chunk` at a time or all at once, and draws the next one."""
        chunk = chunk or len(tokens)
        for start in range(0, len(tokens), chunk):
            row_BT = np.asarray(tokens[start : start + chunk], np.int32)[None]
            token, cache = _step(self.config, self.params, row_BT, cache)
        return int(token), cache

    def reply(self, token: int, cache: Cache, length: int) -> tuple[list[int], Cache]:
        """Draws tokens after `token`, `length` in all; the last one is not read into the cache."""
        drawn = [token]
        while len(drawn) < length:
            token, cache = self.read(cache, drawn[-1:])
            drawn.append(token)
        return drawn, cache


@functools.partial(jax.jit, static_argnames="config")
def _step(config: ModelConfig, params: dict, tokens_BT, cache: Cache):
    model = merge(config, params)
    output = model(tokens_BT, cache=cache)
    return jnp.argmax(model.logits(output.hidden_BTD[0, -1])), output.cache

"""Says how the bytes of a cache grow with its tokens."""

from typing import NamedTuple

import jax.numpy as jnp

from hydrahead_jax.cache import KVFormats, cache_bytes
from hydrahead_jax.config import ModelConfig

_LENGTHS = (1024, 2048)


class CacheSize(NamedTuple):
    """Counts the bytes of a sequence's cache.

    Attributes:
      token: bytes of a token's keys and values in all layers.
      state: bytes of the states, whatever the length.
    """

    token: int
    state: int

    @classmethod
    def of(
        cls, config: ModelConfig, kv_format: KVFormats = None, dtype=jnp.bfloat16
    ) -> "CacheSize":
        """Counts those of a model and a format, which must read no token as given."""
        short, long = (cache_bytes(config, length, dtype, kv_format) for length in _LENGTHS)
        token = (long - short) // (_LENGTHS[1] - _LENGTHS[0])
        return cls(token, short - token * _LENGTHS[0])

    def bytes(self, tokens: int) -> int:
        return self.state + self.token * tokens

"""Stores what generation remembers between calls."""

from hydrahead_jax.cache.layered import Cache, LayerCache, cache_bytes, init_cache

__all__ = ["Cache", "LayerCache", "cache_bytes", "init_cache"]

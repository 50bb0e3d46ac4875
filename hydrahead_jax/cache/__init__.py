"""Stores what generation remembers between calls."""

from hydrahead_jax.cache.formats import KVFormats, LayerFormats, check_names, layer_formats
from hydrahead_jax.cache.layered import Cache, LayerCache, cache_bytes, init_cache

__all__ = [
    "Cache",
    "KVFormats",
    "LayerCache",
    "LayerFormats",
    "cache_bytes",
    "check_names",
    "init_cache",
    "layer_formats",
]

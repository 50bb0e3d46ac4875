"""Measures what a model loses when its KV cache is stored in few bits."""

from hydrahead_jax.kv_quality.measure import Texts, check, measure
from hydrahead_jax.kv_quality.settings import KVReportSettings

__all__ = ["KVReportSettings", "Texts", "check", "measure"]

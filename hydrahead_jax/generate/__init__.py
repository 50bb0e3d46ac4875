"""Generates text: prefill, decode and sampling."""

from hydrahead_jax.generate.api import generate
from hydrahead_jax.generate.decode import decode
from hydrahead_jax.generate.prefill import prefill
from hydrahead_jax.generate.sampling import Sampling, sample

__all__ = ["Sampling", "decode", "generate", "prefill", "sample"]

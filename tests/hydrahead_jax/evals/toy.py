"""Provides a tokenizer with needle symbols, a haystack and a model of its vocabulary."""

import functools

import jax
import numpy as np

from hydrahead_jax.config import FullAttention, ModelConfig
from hydrahead_jax.models import abstract_params
from train.data.tokenizer import train_tokenizer

CONFIG = ModelConfig(
    vocab=320,
    embed=16,
    mlp=16,
    query_heads=2,
    kv_heads=1,
    head_dim=8,
    mixers=(FullAttention(),),
    max_length=64,
)
HAYSTACK = np.random.default_rng(0).integers(33, 320, 2000).astype(np.int32)


@functools.cache
def tokenizer():
    return train_tokenizer(["some words of text " * 9], vocab=320, keys=16, values=16)


@functools.cache
def params() -> dict:
    rng = np.random.default_rng(0)
    draw = lambda leaf: np.asarray(rng.normal(size=leaf.shape), np.float32)
    return jax.tree.map(lambda leaf: jax.numpy.asarray(draw(leaf)), abstract_params(CONFIG))

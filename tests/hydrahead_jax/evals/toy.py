"""Provides a tokenizer with needle symbols, a haystack and a model of its vocabulary."""

import functools

import jax
import numpy as np

from hydrahead_jax.models import abstract_params
from tests.toy_config import toy_config
from train.data.tokenizer import train_tokenizer

CONFIG = toy_config(1, 2, 1, vocab=320, embed=16, mlp=16, head_dim=8, max_length=64)
HAYSTACK = np.random.default_rng(0).integers(33, 320, 2000).astype(np.int32)


@functools.cache
def tokenizer():
    return train_tokenizer(["some words of text " * 9], vocab=320, keys=16, values=16)


@functools.cache
def params() -> dict:
    rng = np.random.default_rng(0)
    draw = lambda leaf: np.asarray(rng.normal(size=leaf.shape), np.float32)
    return jax.tree.map(lambda leaf: jax.numpy.asarray(draw(leaf)), abstract_params(CONFIG))

"""Converts between modules and the plain nested dict of arrays that other folders use.

Only `models` sees modules.
"""

import dataclasses
import functools
import itertools

import jax
from flax import nnx

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.models.decoder import Block, Decoder


class _Keys(nnx.Rngs):
    """Gives each parameter the key that `nnx.Rngs(params=key)` would.

    A traced count, as `nnx.Rngs` has, takes time quadratic in the number of parameters.
    """

    def __init__(self, key: jax.Array):
        counts = itertools.count()
        self.params = lambda: jax.random.fold_in(key, next(counts))


def init_params(config: ModelConfig, key: jax.Array) -> dict:
    """Draws random float32 parameters."""
    return nnx.to_pure_dict(nnx.state(Decoder(config, rngs=_Keys(key)), nnx.Param))


@functools.cache
def _abstract(config: ModelConfig):
    model = nnx.eval_shape(lambda: Decoder(config, rngs=_Keys(jax.random.key(0))))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    if jax.tree.leaves(rest):
        raise ValueError("modules may hold parameters only")
    return graphdef, nnx.to_pure_dict(params)


def abstract_params(config: ModelConfig) -> dict:
    """Returns shapes and dtypes of the parameters; allocates nothing."""
    return _abstract(config)[1]


def merge(config: ModelConfig, params: dict) -> Decoder:
    """Makes the module that computes with `params`: cheap, made anew in every traced function."""
    return nnx.merge(_abstract(config)[0], params)


def layer_config(config: ModelConfig, layer: int) -> ModelConfig:
    """Returns the config of this layer alone; equal for layers of equal structure."""
    return dataclasses.replace(config, mixers=(config.mixers[layer],))


@functools.cache
def _block_graphdef(config: ModelConfig):
    block = nnx.eval_shape(lambda: Block(config, 0, rngs=_Keys(jax.random.key(0))))
    return nnx.split(block, nnx.Param)[0]


def merge_block(config: ModelConfig, params: dict) -> Block:
    """Makes one layer: `config` from `layer_config`, `params` that layer's part."""
    return nnx.merge(_block_graphdef(config), params)

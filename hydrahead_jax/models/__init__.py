"""Defines the decoder: one for the teacher and for every hybrid."""

from hydrahead_jax.models.decoder import Block, Decoder, Output, Taps
from hydrahead_jax.models.layers import Remat, run_modules
from hydrahead_jax.models.params import (
    abstract_params,
    init_params,
    layer_config,
    merge,
    merge_block,
)

__all__ = [
    "Block",
    "Decoder",
    "Output",
    "Remat",
    "Taps",
    "abstract_params",
    "init_params",
    "layer_config",
    "merge",
    "merge_block",
    "run_modules",
]

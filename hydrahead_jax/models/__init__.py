"""The decoder: one for the teacher and for every hybrid."""

from hydrahead_jax.models.decoder import Block, Decoder, Output, Taps
from hydrahead_jax.models.params import (
    abstract_params,
    init_params,
    layer_config,
    merge,
    merge_block,
)
from hydrahead_jax.models.remat import Remat, run_module

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
    "run_module",
]

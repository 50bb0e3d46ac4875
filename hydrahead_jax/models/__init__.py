"""The decoder: one for the teacher and for every hybrid."""

from hydrahead_jax.models.decoder import Decoder, Output, Taps
from hydrahead_jax.models.params import abstract_params, init_params, merge

__all__ = ["Decoder", "Output", "Taps", "abstract_params", "init_params", "merge"]

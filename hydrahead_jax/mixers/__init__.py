"""Defines token mixers, all with `mixer(x_BTD, stream, cache, edit) -> MixerOutput`."""

from hydrahead_jax.config import FullAttention, ModelConfig, NativeHybrid
from hydrahead_jax.mixers.full_attention import FullAttentionMixer
from hydrahead_jax.mixers.hydra import HydraMixer
from hydrahead_jax.mixers.native_hybrid import NativeHybridMixer
from hydrahead_jax.mixers.types import AttentionInputs, HeadEdit, MixerOutput, Stream

__all__ = ["AttentionInputs", "HeadEdit", "MixerOutput", "Stream", "make_mixer"]


def make_mixer(config: ModelConfig, layer: int, *, rngs):
    """Makes the module for one layer's mixer."""
    mixer = config.mixers[layer]
    if isinstance(mixer, FullAttention):
        return FullAttentionMixer(config, rngs=rngs)
    if isinstance(mixer, NativeHybrid):
        return NativeHybridMixer(config, mixer, rngs=rngs)
    return HydraMixer(config, mixer, rngs=rngs)

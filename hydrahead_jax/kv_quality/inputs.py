"""Reads what the softmax heads of each layer attend to."""

import functools

import jax

from hydrahead_jax.config import ModelConfig
from hydrahead_jax.mixers import AttentionInputs
from hydrahead_jax.models import Taps, merge
from hydrahead_jax.models.stream import make_stream


@functools.partial(jax.jit, static_argnames="config")
def attention_inputs(config: ModelConfig, params: dict, tokens_BT) -> dict[int, AttentionInputs]:
    """Returns queries, keys and values of each layer that has softmax heads over all tokens."""
    model = merge(config, params)
    stream = make_stream(tokens_BT.shape, None, None, None, False)
    read = model(tokens_BT, tap=_mixer_in).taps
    return {
        layer: model.layers[layer].mixer.attention_inputs(read[layer], stream)
        for layer in kv_layers(config)
    }


def kv_layers(config: ModelConfig) -> tuple[int, ...]:
    """Returns the layers that have a KV cache."""
    return tuple(layer for layer in range(config.layers) if config.softmax_heads(layer))


def kv_heads(config: ModelConfig, layer: int) -> tuple[int, ...]:
    """Returns the teacher's KV heads that some softmax head of a layer reads, in cache order."""
    read = {config.kv_head(head) for head in config.softmax_heads(layer)}
    return tuple(sorted(read))


def _mixer_in(taps: Taps):
    return taps.mixer_in_BTD

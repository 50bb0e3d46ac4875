"""Compiles a step of a selection at a real width with the TPU's own compiler."""

import functools

import jax
import jax.numpy as jnp
import pytest

from hydrahead_jax.cache.layered import KVCache, LayerCache
from hydrahead_jax.config import qwen3
from hydrahead_jax.mixers import Stream
from hydrahead_jax.models import abstract_params, layer_config
from hydrahead_jax.selection.effects import sender
from hydrahead_jax.selection.effects.memory import stream_bytes
from pallas_kernels.hardware.tpu import compile_for_tpu

pytestmark = [pytest.mark.tpu_compiler, pytest.mark.heavy]

TOKENS, BEFORE, STREAMS, ANSWER = 256, 256, 4, 8


def listen(params, x_BSTD, y_BSJD, out_BTD, ids, start, keys_and_values, *, config):
    stream = Stream(*ids, start, training=False)
    cache = LayerCache(KVCache(*keys_and_values), None)
    return sender._heard(
        params, x_BSTD, y_BSJD, out_BTD, stream, cache, config=config, listening=(0, 5, 6)
    )


def test_a_layer_that_listens_runs_the_attention_kernel_within_the_stated_memory():
    config = layer_config(qwen3("1.7b"), 0)
    array = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)
    lengths = (TOKENS, TOKENS, BEFORE + TOKENS, 3)
    params = jax.tree.map(
        lambda x: array(*x.shape, dtype=jnp.bfloat16), abstract_params(config)["layers"][0]
    )
    program = compile_for_tpu(
        functools.partial(listen, config=config),
        params,
        array(1, STREAMS, TOKENS, config.embed),
        array(1, STREAMS, ANSWER, config.embed),
        array(1, TOKENS, config.embed),
        [array(1, length, dtype=jnp.int32) for length in lengths],
        array(dtype=jnp.int32),
        [array(1, BEFORE + TOKENS, config.kv_heads, config.head_dim, dtype=jnp.bfloat16)] * 2,
    )
    assert any(kernel.name.startswith("attention_forward") for kernel in program.kernels)
    weights = sum(x.size * 2 for x in jax.tree.leaves(params))
    assert program.memory.peak - weights < STREAMS * stream_bytes(config, TOKENS)

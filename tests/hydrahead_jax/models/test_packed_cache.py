"""Checks a model whose KV cache is stored in a format of few bits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hydrahead_jax.cache import cache_bytes, init_cache, layer_formats
from hydrahead_jax.cache.layered import KVCache
from hydrahead_jax.config import Hydra, ModelConfig, qwen3
from hydrahead_jax.errors import UserError
from hydrahead_jax.head_plan import HeadPlan
from hydrahead_jax.models import merge
from pallas_kernels import KV_FORMATS, PackedKV
from tests.hydrahead_jax.models.toy import WIDE_HEADS as CONFIG
from tests.hydrahead_jax.models.toy import B, T, distinct_tokens, random_params
from tests.tolerances import OP, assert_close

PARAMS = random_params(CONFIG)
ULTRAQUANT = KV_FORMATS["ultraquant"]
NO_SOFTMAX = Hydra(fa_heads=())


@functools.partial(jax.jit, static_argnames="config")
def step(config: ModelConfig, params, cache, tokens_BT, segment_ids_BT=None):
    output = merge(config, params)(tokens_BT, segment_ids_BT=segment_ids_BT, cache=cache)
    return output.hidden_BTD, output.cache


@functools.partial(jax.jit, static_argnames=("config", "kv_format"))
def prefill_then_decode(config, kv_format, params, prompts_BT, segment_ids_BT, rest_BT):
    """Returns the hidden states of the rest, and the cache after it."""
    cache = init_cache(config, len(prompts_BT), 2 * T, kv_format=kv_format)
    _, cache = step(config, params, cache, prompts_BT, segment_ids_BT)

    def one(cache, token_B):
        hidden_B1D, cache = step(config, params, cache, token_B[:, None])
        return cache, hidden_B1D[:, 0]

    cache, rest_TBD = jax.lax.scan(one, cache, rest_BT.T)
    return jnp.moveaxis(rest_TBD, 0, 1), cache


def splits():
    """Returns the rest of row b after b + 1 tokens, which are padded on the left, and segments."""
    tokens_T = distinct_tokens()[0]
    prompts_BT = np.stack([np.roll(tokens_T, T - 1 - b) for b in range(T)])
    segment_ids_BT = (np.arange(T) >= T - 1 - np.arange(T)[:, None]).astype(np.int32)
    rest_BT = np.stack([np.roll(tokens_T, -1 - b) for b in range(T)])
    return tuple(map(jnp.asarray, (prompts_BT, segment_ids_BT, rest_BT)))


def test_every_split_of_prefill_and_decode_is_the_same():
    """Keys and values of a first layer depend on token and position alone.

    All rows are the same text of 2 T tokens, with b + 1 of them in row b's prompt, and padding.
    """
    kv_format = dataclasses.replace(ULTRAQUANT, sinks=2, recent=2)
    rest_BTD, cache = prefill_then_decode(CONFIG, kv_format, PARAMS, *splits())
    stored_BSKX = np.asarray(jax.jit(PackedKV.slots)(cache.layers[0].kv))
    for b in range(T):
        same = stored_BSKX[b, T - 1 - b : 2 * T] == stored_BSKX[T - 1, : T + b + 1]
        assert same.mean() > 0.999  # a rounding error may take a number over a boundary
        assert_close(rest_BTD[b, T - 1 - b], rest_BTD[T - 1, 0], OP)


def test_tokens_that_are_stored_as_given_give_what_the_plain_cache_gives():
    """Rows are padded, and queries see null keys."""
    expected, _ = prefill_then_decode(CONFIG, None, PARAMS, *splits())
    kv_format = dataclasses.replace(ULTRAQUANT, sinks=3, recent=2 * T)
    found, _ = prefill_then_decode(CONFIG, kv_format, PARAMS, *splits())
    assert_close(found, expected, OP)


def test_a_chunk_reads_earlier_tokens_as_stored_and_its_own_as_given():
    first_BT, second_BT = np.split(jnp.asarray(distinct_tokens()), 2, axis=1)
    run = functools.partial(step, CONFIG, PARAMS)
    plain_BTD, _ = run(init_cache(CONFIG, B, T), first_BT)
    first_BTD, cache = run(init_cache(CONFIG, B, T, kv_format="ultraquant"), first_BT)
    assert_close(first_BTD, plain_BTD, OP)
    decode = jax.jit(lambda kv: KVCache(*kv.decoded(jnp.float32)))
    layer = dataclasses.replace(cache.layers[0], kv=decode(cache.layers[0].kv))
    found_BTD, _ = run(cache, second_BT)
    expected_BTD, _ = run(dataclasses.replace(cache, layers=[layer]), second_BT)
    assert_close(found_BTD, expected_BTD, OP)


def test_layers_may_have_formats_of_their_own():
    config = dataclasses.replace(CONFIG, mixers=(Hydra(fa_heads=(0, 3)), *CONFIG.mixers))
    for given in ({1: "int4"}, [None, "int4"], ("bf16", KV_FORMATS["int4"])):
        layers = init_cache(config, 1, 4, kv_format=given).layers
        assert [type(layer.kv) for layer in layers] == [KVCache, PackedKV]
        assert layers[1].kv.format == KV_FORMATS["int4"]
    delta_rule = dataclasses.replace(CONFIG, mixers=(NO_SOFTMAX, *CONFIG.mixers))
    assert layer_formats(delta_rule, "ultraquant") == (None, ULTRAQUANT)


@pytest.mark.parametrize(
    ("config", "kv_format", "message"),
    [
        (CONFIG, "int3", "there is no format 'int3'; use one of bf16, fp8, ultraquant"),
        (CONFIG, {1: "fp8"}, "no layer 1 in a model of 1 layers; use layers from 0 to 0"),
        (CONFIG, ["fp8"] * 2, "2 formats for 1 layers; give one for each"),
        (
            dataclasses.replace(CONFIG, mixers=(NO_SOFTMAX,)),
            {0: "fp8"},
            "layer 0 has no softmax heads and no KV cache; give None for it",
        ),
        (
            dataclasses.replace(CONFIG, head_dim=16),
            "ultraquant",
            "groups of 32 channels do not divide a head dimension of 16; use another format",
        ),
        (
            dataclasses.replace(CONFIG, head_dim=96),
            "ultraquant",
            "needs a head dimension that is a power of 2, not 96; use another format",
        ),
    ],
)
def test_formats_that_a_model_cannot_have_are_refused(config, kv_format, message):
    with pytest.raises(UserError, match=f"^KV cache: .*{message}"):
        init_cache(config, 1, 4, kv_format=kv_format)


def test_cache_bytes_equal_hand_arithmetic():
    """At 7:1 two heads a layer stay softmax; at 4 bits a token of a KV head takes 136 bytes."""
    teacher = dataclasses.replace(qwen3("1.7b"), mixers=qwen3("1.7b").mixers[:3])
    plan = HeadPlan(fa_heads=((0, 2),) * 3, query_heads=16, kv_heads=8, strategy="hand-made")
    student = plan.student(teacher)
    a_token = lambda *more: cache_bytes(student, 257, *more) - cache_bytes(student, 256, *more)
    assert a_token(jnp.bfloat16, None) == 3 * 2 * 512
    assert a_token(jnp.bfloat16, "ultraquant") == 3 * 2 * 136
    assert a_token(jnp.bfloat16, "fp8") == 3 * 2 * 256
    states = cache_bytes(student, 256) - 256 * 3 * 2 * 512
    assert cache_bytes(student, 256, kv_format="ultraquant") == states + 256 * 3 * 2 * 136

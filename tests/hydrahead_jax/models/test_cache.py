"""Checks that prefill and decode equal one forward pass, wherever the sequence is cut."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hydrahead_jax.cache import cache_bytes, init_cache
from hydrahead_jax.config import qwen3
from hydrahead_jax.head_plan import HeadPlan
from hydrahead_jax.models import merge
from tests.hydrahead_jax.models.toy import (
    ALL,
    MODELS,
    B,
    T,
    distinct_tokens,
    hidden,
    hybrid,
    params_of,
)
from tests.tolerances import OP, assert_close


@functools.partial(jax.jit, static_argnames="config")
def prefill_then_decode(config, params, prompts_BT, segment_ids_BT, rest_BT):
    """Returns the hidden states of the prompts, then of each token of the rest."""
    model = merge(config, params)
    cache = init_cache(config, len(prompts_BT), 2 * T)
    output = model(prompts_BT, segment_ids_BT=segment_ids_BT, cache=cache)

    def step(cache, token_B):
        output = model(token_B[:, None], cache=cache)
        return output.cache, output.hidden_BTD[:, 0]

    _, rest_TBD = jax.lax.scan(step, output.cache, rest_BT.T)
    return output.hidden_BTD, jnp.moveaxis(rest_TBD, 0, 1)


@pytest.mark.parametrize("name", MODELS)
def test_prefill_and_decode_equal_the_full_forward_at_every_split(name):
    """Row b prefills b + 1 tokens, padded on the left, and decodes the others."""
    tokens_BT = distinct_tokens()
    full_TD = hidden(MODELS[name], params_of(name), tokens_BT)[0][0]
    prompts_BT = np.stack([np.roll(tokens_BT[0], T - 1 - b) for b in range(T)])
    segment_ids_BT = (np.arange(T) >= T - 1 - np.arange(T)[:, None]).astype(np.int32)
    rest_BT = np.stack([np.roll(tokens_BT[0], -1 - b) for b in range(T)])
    prompt_BTD, rest_BTD = prefill_then_decode(
        MODELS[name], params_of(name), *map(jnp.asarray, (prompts_BT, segment_ids_BT, rest_BT))
    )
    for b in range(T):
        assert_close(prompt_BTD[b, T - 1 - b :], full_TD[: b + 1], OP)
        assert_close(rest_BTD[b, : T - 1 - b], full_TD[b + 1 :], OP)


@pytest.mark.parametrize("name", ["teacher", "gated fusion, shared projections", "native hybrid"])
def test_prefill_in_parts(name):
    """The first part is one token, into an empty cache that has no room to spare."""
    config, params, tokens_BT = MODELS[name], params_of(name), distinct_tokens()
    step = jax.jit(lambda params, tokens_BT, cache: merge(config, params)(tokens_BT, cache=cache))
    cache, parts = init_cache(config, B, T), []
    for part_BT in np.split(tokens_BT, [1, 6, 7], axis=1):
        output = step(params, jnp.asarray(part_BT), cache)
        cache = output.cache
        parts.append(output.hidden_BTD)
    assert_close(jnp.concatenate(parts, axis=1), hidden(config, params, tokens_BT)[0], OP)
    assert int(cache.length) == T and np.all(np.asarray(cache.positions_B) == T)


def test_cache_holds_only_kv_heads_that_are_read():
    cache = init_cache(hybrid((), (2,), (1, 2), ALL), 3, 10)
    kv_heads = [layer.kv.k_BSKH.shape[2] if layer.kv else 0 for layer in cache.layers]
    states = [
        layer.recurrent.state_BNHP.shape if layer.recurrent else None for layer in cache.layers
    ]
    assert kv_heads == [0, 1, 2, 2]
    assert states == [(3, 4, 8, 8), (3, 3, 8, 8), (3, 2, 8, 8), None]
    assert cache.capacity == 10


def test_recurrent_state_is_float32_in_any_compute_dtype():
    cache = init_cache(hybrid((1,)), 1, 4, jnp.bfloat16)
    assert cache.layers[0].recurrent.state_BNHP.dtype == jnp.float32
    assert cache.layers[0].recurrent.conv_q_BWNH.dtype == jnp.bfloat16
    assert cache.layers[0].kv.k_BSKH.dtype == jnp.bfloat16


def test_cache_bytes_of_qwen3_equal_hand_arithmetic():
    """The teacher takes 112 KiB a token: 28 layers, 8 heads of 128, keys and values, bf16."""
    teacher = qwen3("1.7b")
    assert cache_bytes(teacher, 2**18) == 28 * 2**30
    one_head = HeadPlan(fa_heads=((0,),) * 28, query_heads=16, kv_heads=8, strategy="test")
    kv = 28 * 2 * 128 * 2 * 32768
    states = 28 * 15 * 128 * 128 * 4
    tails = 28 * 15 * 3 * 3 * 128 * 2
    assert cache_bytes(one_head.student(teacher), 32768) == kv + states + tails

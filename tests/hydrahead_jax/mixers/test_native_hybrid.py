"""Checks the native hybrid mixer against its formula, and what it adds beside the common tests."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hydrahead_jax.cache import cache_bytes, init_cache
from hydrahead_jax.config import Hydra, HydraChoices, NativeHybrid
from hydrahead_jax.models import merge
from hydrahead_jax.models.stream import extend_cache, make_stream
from tests.hydrahead_jax.mixers.formula import native_hybrid_heads
from tests.hydrahead_jax.models.toy import NATIVE_HYBRID, B, T, distinct_tokens, hidden, params_of
from tests.tolerances import OP, assert_close
from tests.toy_config import toy_config

NAME, CONFIG = "native hybrid", NATIVE_HYBRID
LAYERS = range(CONFIG.layers)


@functools.cache
def taps():
    return hidden(CONFIG, params_of(NAME), distinct_tokens())[1]


@pytest.mark.parametrize("layer", LAYERS)
def test_heads_and_the_share_of_slots_equal_the_formula(layer):
    mixer = params_of(NAME)["layers"][layer]["mixer"]
    shares = []
    for row in range(B):
        x_TD = np.asarray(taps()[layer].mixer_in_BTD[row], np.float64)
        heads_TNH, share_TN = native_hybrid_heads(CONFIG, CONFIG.mixers[layer], mixer, x_TD)
        assert_close(taps()[layer].heads_BTNH[row], heads_TNH, OP)
        shares.append(share_TN)
    assert ("q_norm_H" in mixer["qkv"]) == CONFIG.mixers[layer].qk_norm
    wanted_BTD = np.einsum("BTNH,NHD->BTD", taps()[layer].heads_BTNH, mixer["w_o_NHD"])
    assert_close(taps()[layer].mixer_out_BTD, wanted_BTD, OP)
    if CONFIG.mixers[layer].window is None:
        assert taps()[layer].statistics == {} and "w_gate_slots_DKM" not in mixer
    else:
        total, count = taps()[layer].statistics["sigma"]
        assert_close(total / count, np.mean(shares), OP)
        shares = np.concatenate(shares)
        logs = np.log(shares, where=shares > 0, out=np.zeros_like(shares))
        assert_close(taps()[layer].statistics["slots_bce"][0] / count, -logs.mean(), OP)


@functools.partial(jax.jit, static_argnames="heads")
def some_heads(params, inputs, heads):
    """Returns these heads of every layer, of the tokens from 5 on, which follow a cache."""
    layers, cache = merge(CONFIG, params).layers, init_cache(CONFIG, B, T)
    begin = make_stream((B, 5), None, None, cache, False)
    end = make_stream((B, T - 5), None, None, extend_cache(cache, [], begin), False)
    found = []
    for layer, x_BTD, empty in zip(layers, inputs, cache.layers, strict=True):
        before = layer.mixer(x_BTD[:, :5], begin, empty).cache
        found.append(layer.mixer.some_heads(x_BTD[:, 5:], end, before, heads))
    return found


def test_some_heads_are_those_of_all_heads():
    heads = (2,)
    inputs = [tap.mixer_in_BTD for tap in taps()]
    for some_BTNH, tap in zip(some_heads(params_of(NAME), inputs, heads), taps(), strict=True):
        assert_close(some_BTNH, tap.heads_BTNH[:, 5:, list(heads)], OP)


def test_the_cache_is_slots_and_one_copy_of_the_window():
    cache = init_cache(CONFIG, 2, 30, jnp.bfloat16)
    window, slots_only, everything, _ = cache.layers
    assert window.kv is None and window.recurrent is None
    assert window.slots.k_slots_BKMH.shape == (2, 2, 5, 8)
    assert window.slots.k_slots_BKMH.dtype == jnp.float32
    assert window.slots.k_waiting_BWKH.shape == (2, 3, 2, 8)
    assert window.slots.k_waiting_BWKH.dtype == jnp.bfloat16
    assert slots_only.slots.k_waiting_BWKH.shape == (2, 0, 2, 8)
    assert everything.slots is None and everything.kv.k_BSKH.shape == (2, 30, 2, 8)


def test_cache_bytes_of_a_layer_equal_hand_arithmetic():
    config = toy_config(kv_heads=2, head_dim=128, mixers=(NativeHybrid(window=32),))
    slots = 2 * 2 * 64 * 128 * 4 + 1
    window = 32 * (2 * 2 * 128 * 2 + 2 * 64 * 4 + 1)
    assert cache_bytes(config, 10) == cache_bytes(config, 2**18) == slots + window
    choices = HydraChoices(native_hybrid=NativeHybrid(window=32))
    beside = dataclasses.replace(config, mixers=(Hydra(fa_heads=(3,), choices=choices),))
    assert cache_bytes(beside, 10) == slots + window + 10 * 2 * 128 * 2
    # Once query heads 2 and 3 are softmax, their KV head needs no slots.
    beside = dataclasses.replace(config, mixers=(Hydra(fa_heads=(2, 3), choices=choices),))
    half = (slots - 1) // 2 + 32 * ((2 * 128 * 2 + 64 * 4) + 1) + 1
    assert cache_bytes(beside, 10) == half + 10 * 2 * 128 * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": -1}, "window=-1 must be 0 or more, or None to see all tokens"),
        ({"window": 3, "slots": 0}, "slots=0 must be 1 or more"),
        ({"window": 3, "gate_normaliser": 0.0}, "gate_normaliser=0.0 must be positive and finite"),
    ],
)
def test_impossible_mixers_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        NativeHybrid(**change)

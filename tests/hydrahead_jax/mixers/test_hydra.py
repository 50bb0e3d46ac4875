"""Compares the HydraHead layer with its formula, and its state with that of single documents."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hydrahead_jax.cache import init_cache
from hydrahead_jax.config import Hydra
from hydrahead_jax.models import merge
from hydrahead_jax.models.stream import make_stream
from tests.hydrahead_jax.mixers.formula import hydra_heads
from tests.hydrahead_jax.models.toy import MODELS, B, T, distinct_tokens, hidden, params_of
from tests.tolerances import OP, assert_close

LAYERS = [
    pytest.param(name, layer, id=f"{name}, layer {layer}")
    for name, config in MODELS.items()
    for layer, mixer in enumerate(config.mixers)
    if isinstance(mixer, Hydra)
]


@pytest.mark.parametrize(("name", "layer"), LAYERS)
def test_heads_equal_the_formula(name, layer):
    config, params = MODELS[name], params_of(name)
    _, taps = hidden(config, params, distinct_tokens())
    for row in range(2):
        x_TD = np.asarray(taps[layer].mixer_in_BTD[row], np.float64)
        mixer = params["layers"][layer]["mixer"]
        wanted_TNH = hydra_heads(config, config.mixers[layer], mixer, x_TD)
        assert_close(taps[layer].heads_BTNH[row], wanted_TNH, OP)


@pytest.mark.parametrize(("name", "layer"), LAYERS)
def test_the_output_is_the_heads_times_w_o_in_the_teacher_s_order(name, layer):
    config, params = MODELS[name], params_of(name)
    _, taps = hidden(config, params, distinct_tokens())
    weights, fa_heads = params["layers"][layer]["mixer"], config.mixers[layer].fa_heads
    gdn_heads = [n for n in range(config.query_heads) if n not in fa_heads]
    w_o_NHD = np.zeros((config.query_heads, config.head_dim, config.embed))
    others = "gdn" if "gdn" in weights else "slots"
    for branch, heads in (("fa", list(fa_heads)), (others, gdn_heads)):
        if heads:
            w_o_NHD[heads] = weights[branch]["w_o_NHD"]
    wanted_BTD = np.einsum("BTNH,NHD->BTD", taps[layer].heads_BTNH, w_o_NHD)
    assert_close(taps[layer].mixer_out_BTD, wanted_BTD, OP)


@functools.partial(jax.jit, static_argnames="config")
def run_mixer(config, params, x_BTD, segment_ids_BT):
    """Returns output and cache of the first layer's mixer, from an empty cache."""
    cache = init_cache(config, B, T)
    stream = make_stream((B, T), segment_ids_BT, None, None, False)
    mixer = merge(config, params).layers[0].mixer
    output = mixer(x_BTD, stream, cache.layers[0])
    return output.out_BTD, output.cache


@pytest.mark.parametrize(
    "name", ["teacher", "hybrid, then softmax only", "gated fusion, shared projections"]
)
@pytest.mark.parametrize("length", [2, 5])
def test_state_and_convolution_tail_are_those_of_the_last_document(name, length):
    """Each row's last document is packed after another one, and alone at the right."""
    config, params = MODELS[name], params_of(name)
    x_BTD = jax.random.normal(jax.random.key(0), (B, T, config.embed))
    packed_ids = np.ones((B, T), np.int32)
    packed_ids[:, T - length :] = 2
    alone_ids = np.where(packed_ids == 2, 1, 0).astype(np.int32)
    packed_BTD, packed = run_mixer(config, params, x_BTD, jnp.asarray(packed_ids))
    alone_BTD, alone = run_mixer(config, params, x_BTD, jnp.asarray(alone_ids))
    assert_close(packed_BTD[:, T - length :], alone_BTD[:, T - length :], OP)
    assert np.all(np.isfinite(alone_BTD))
    if name == "teacher":
        assert packed.recurrent is None
        assert_close(packed.kv.v_BSKH[:, T - length :], alone.kv.v_BSKH[:, T - length :], OP)
        return
    assert_close(packed.recurrent.state_BNHP, alone.recurrent.state_BNHP, OP)
    assert np.max(np.abs(packed.recurrent.state_BNHP)) > 0.1
    kept = min(3, length)
    for tail in ("conv_q_BWNH", "conv_k_BWNH", "conv_v_BWNP"):
        packed_tail, alone_tail = getattr(packed.recurrent, tail), getattr(alone.recurrent, tail)
        assert_close(packed_tail[:, -kept:], alone_tail[:, -kept:], OP)

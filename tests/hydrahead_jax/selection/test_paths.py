"""Checks receiver, sender and total effects against their definitions, head by head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hydrahead_jax.selection.effects import direct, reference, sender, total, trace
from tests.hydrahead_jax.selection.toy import (
    CONFIGS,
    EARLY,
    FULL,
    LATE,
    every_head,
    random_pairs,
    random_params,
)

LOUD = {
    "plain": {"heads": 1.0},
    "loud heads": {"heads": 30.0},
    "loud heads and MLPs": {"heads": 100.0, "mlp": 100.0},
    "loud MLPs": {"heads": 0.1, "mlp": 1000.0},
}
OTHERS = [name for name in CONFIGS if name != "grouped"]
ALL = "all after the first layer"
LISTENING = {
    ALL: lambda config: ((), *(config.softmax_heads(k) for k in range(1, config.layers))),
    "one in the middle": lambda config: ((), config.softmax_heads(1)[:1], ()),
    "the last layer": lambda config: ((), (), config.softmax_heads(2)[-1:]),
    "none": lambda config: ((), (), ()),
}


@pytest.fixture(autouse=True)
def short_steps(monkeypatch):
    """Lets documents of 40 tokens have a common beginning that is run once."""
    monkeypatch.setattr(trace, "_SHORTEST_STEP", 5)


def _close(config, params, pairs, ours_BX, exact_BX):
    """Checks a difference below 1e-5 of the pair's denominator, which is at least 0.5."""
    clean_B, corrupted_B = reference.clean_readouts(config, params, pairs)
    scale_B1 = np.maximum(np.abs(np.asarray(clean_B - corrupted_B)), 0.5)[:, None]
    differences_BX = (np.asarray(ours_BX, np.float64) - exact_BX) / scale_B1
    assert np.abs(differences_BX).max() < 1e-5


@pytest.mark.parametrize(
    ("name", "first"), [("grouped", EARLY), ("grouped", LATE), ("hybrid", LATE)]
)
def test_the_trace_is_the_model(name, first):
    config = CONFIGS[name]
    pairs, params = random_pairs(config, first), random_params(config)
    found = trace.trace_pairs(config, params, pairs)
    assert (found.caches[0] is None) == (first == EARLY)
    exact = reference.clean_readouts(config, params, pairs)
    np.testing.assert_allclose((found.clean_B, found.corrupted_B), exact, atol=3e-6)


@pytest.mark.parametrize(
    ("name", "loud"),
    [*(("grouped", loud) for loud in LOUD), *((name, "loud heads") for name in OTHERS)],
)
def test_direct_effects_equal_the_definition(name, loud):
    config = CONFIGS[name]
    pairs, params = random_pairs(config), random_params(config, **LOUD[loud])
    found = trace.trace_pairs(config, params, pairs)
    ours_BX = np.asarray(direct.patched_readouts(config, params, found)).reshape(5, -1)
    exact_BX = reference.receiver_readouts(config, params, pairs, every_head(config))
    assert np.abs(exact_BX - np.asarray(found.clean_B)[:, None]).max() > 1e-2
    _close(config, params, pairs, ours_BX, exact_BX)


@pytest.mark.parametrize(
    ("name", "listening"),
    [*(("grouped", who) for who in LISTENING), *((name, ALL) for name in OTHERS)],
)
def test_sender_effects_equal_the_definition(name, listening):
    config = CONFIGS[name]
    pairs, params = random_pairs(config), random_params(config)
    receivers = LISTENING[listening](config)
    found = trace.trace_pairs(config, params, pairs)
    heads = range(config.query_heads)
    run = lambda l: sender.patched_readouts(config, params, found, l, heads, receivers)
    ours_BX = np.concatenate([run(layer) for layer in range(config.layers)], axis=1)
    exact_BX = reference.sender_readouts(config, params, pairs, every_head(config), receivers)
    largest = np.abs(exact_BX - np.asarray(found.clean_B)[:, None]).max()
    assert largest > 1e-2 if any(receivers) else largest < 1e-5
    _close(config, params, pairs, ours_BX, exact_BX)


@pytest.mark.parametrize("name", CONFIGS)
def test_total_effects_equal_the_definition(name):
    config = CONFIGS[name]
    pairs, params = random_pairs(config), random_params(config)
    found = trace.trace_pairs(config, params, pairs)
    heads = range(config.query_heads)
    run = lambda layer: total.patched_readouts(config, params, found, layer, heads)
    ours_BX = np.concatenate([run(layer) for layer in range(config.layers)], axis=1)
    exact_BX = reference.total_readouts(config, params, pairs, every_head(config))
    _close(config, params, pairs, ours_BX, exact_BX)


def test_where_x_is_its_own_counterfactual_nothing_changes():
    pairs, params = random_pairs(FULL), random_params(FULL)
    same = pairs._replace(corrupt_BT=pairs.tokens_BT)
    found = trace.trace_pairs(FULL, params, same)
    ours_BLN = direct.patched_readouts(FULL, params, found)
    np.testing.assert_allclose(
        ours_BLN, np.broadcast_to(found.clean_B[:, None, None], ours_BLN.shape), atol=1e-6
    )


def test_bf16_parameters_keep_effects_near_those_of_float32():
    """The residual stream and the readout stay float32.

    So a patched stream that changes nothing gives exactly the readout of x.
    """
    pairs, params = random_pairs(FULL), random_params(FULL)
    low = ("w_embed_VD", "layers")
    half = params | jax.tree.map(lambda x: x.astype(jnp.bfloat16), {k: params[k] for k in low})
    readouts = []
    for each in (params, half):
        found = trace.trace_pairs(FULL, each, pairs)
        readouts.append(np.asarray(direct.patched_readouts(FULL, each, found)))
        silent = sender.patched_readouts(FULL, each, found, 2, [0, 1], ((), (0,), ()))
        np.testing.assert_array_equal(silent, np.stack([found.clean_B] * 2, axis=1))
        last = sender.patched_readouts(FULL, each, found, 0, [0], ((), (), ()))
        np.testing.assert_array_equal(last[:, 0], found.clean_B)
    assert 1e-5 < np.abs(readouts[0] - readouts[1]).max() < 0.1

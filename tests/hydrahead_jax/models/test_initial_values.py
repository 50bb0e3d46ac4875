"""Checks that new parameters start where they change nothing."""

import functools

import jax
import numpy as np

from hydrahead_jax.models import init_params
from tests.hydrahead_jax.models.toy import distinct_tokens, hidden, hybrid
from tests.tolerances import assert_close


@functools.cache
def fresh():
    config = hybrid((0, 3), fusion="gated")
    return config, init_params(config, jax.random.key(0))


def without(params: dict, prefix: str) -> dict:
    """Returns the nested dict without the entries whose name starts with `prefix`."""
    return {
        key: without(value, prefix) if isinstance(value, dict) else value
        for key, value in params.items()
        if not str(key).startswith(prefix)
    }


def test_convolution_and_competition_of_branches_start_as_the_identity():
    """A model without them gives the same numbers."""
    config, params = fresh()
    fewer = without(without(params, "w_fusion"), "conv_")
    assert len(jax.tree.leaves(fewer)) == len(jax.tree.leaves(params)) - 4
    smaller = hybrid((0, 3), fusion="scale", short_conv=False)
    tokens_BT = distinct_tokens()
    wanted_BTD, _ = hidden(config, params, tokens_BT)
    assert_close(hidden(smaller, fewer, tokens_BT)[0], wanted_BTD, 1e-6)


def test_gates_gamma_norms_and_convolutions():
    """2 sigmoid(0) is 1; the convolution is a delta on the last tap."""
    gdn = fresh()[1]["layers"][0]["mixer"]["gdn"]
    fa = fresh()[1]["layers"][0]["mixer"]["fa"]
    for branch in (fa, gdn):
        assert not np.any(branch["w_gate_DNH"])
        assert np.all(branch["gamma_N"] == 1) and np.all(branch["out_norm_H"] == 1)
    for name in ("conv_q_WNH", "conv_k_WNH", "conv_v_WNH"):
        assert np.all(gdn[name][-1] == 1) and not np.any(gdn[name][:-1])


def test_decay_starts_in_the_range_of_gated_delta_net():
    """The rate A is in (1, 16), the time step in [1e-3, 1e-1]."""
    gdn = fresh()[1]["layers"][0]["mixer"]["gdn"]
    rate_N = np.exp(gdn["a_log_N"])
    step_N = np.log1p(np.exp(np.asarray(gdn["dt_bias_N"], np.float64)))
    assert np.all((rate_N >= 1) & (rate_N <= 16))
    assert np.all((step_N >= 0.999e-3) & (step_N <= 1.001e-1))

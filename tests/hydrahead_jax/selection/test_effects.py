import jax.numpy as jnp
import numpy as np
import pytest

from hydrahead_jax.config import qwen3
from hydrahead_jax.errors import UserError
from hydrahead_jax.selection.effects.memory import (
    at_once,
    receiver_bytes,
    stream_bytes,
    trace_bytes,
)
from hydrahead_jax.selection.effects.readout import readout, readout_positions
from hydrahead_jax.selection.effects.trace import trace_pairs
from hydrahead_jax.selection.scores.pair_effects import effects, usable_pairs
from hydrahead_jax.selection.screening import agreement, missed_mass, ruled_in, sample
from tests.hydrahead_jax.selection.toy import FULL, LENGTH, random_pairs, random_params


def test_readout_by_hand():
    answer_BJ, distractor_BJ = np.array([[3.0, 1.0, 0.0]]), np.array([[1.0, 2.0, 4.0]])
    ids_BJ = np.array([[5, 6, 7]])
    expected = (2.0 - 0.9 * 1.0 - 0.81 * 4.0) / (1 + 0.9 + 0.81)
    np.testing.assert_allclose(
        readout(*map(jnp.asarray, (answer_BJ, distractor_BJ, ids_BJ))), [expected], rtol=1e-6
    )
    ids_BJ[:, 2] = -1
    shorter = (2.0 - 0.9 * 1.0) / (1 + 0.9)
    np.testing.assert_allclose(
        readout(*map(jnp.asarray, (answer_BJ, distractor_BJ, ids_BJ))), [shorter], rtol=1e-6
    )
    assert range(10)[readout_positions(10, 2)] == range(7, 9)


def test_effects_by_hand():
    patched_BLN = np.array([[[4.0, 2.0]], [[1.5, 1.0]]])
    found = effects(np.array([4.0, 1.5]), np.array([-4.0, 1.0]), patched_BLN)
    np.testing.assert_allclose(found, [[[0.0, 0.25]], [[0.0, 1.0]]])


def test_usable_pairs():
    clean_B = np.array([4.0, 4.0, 4.0, 1.5, 3.0, 3.0, 3.0, 3.0])
    corrupted_B = np.array([-4.0, 3.51, 6.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    np.testing.assert_array_equal(usable_pairs(clean_B, corrupted_B, name="p"), [0, 3, 4, 5, 6, 7])
    with pytest.raises(UserError, match=r"probe p: .* in 5 of 7 pairs, and 6 are needed; use more"):
        usable_pairs(clean_B[1:], corrupted_B[1:], name="p")


def test_what_attribution_rules_in_and_what_it_missed():
    estimates_XLN = np.array([[[0.0, 0.002, 0.0]], [[-0.001, 0.0, 0.0009]]])
    heads = [(0, 0), (0, 1), (0, 2)]
    assert ruled_in(estimates_XLN, heads) == [(0, 0), (0, 1)]
    assert sample(heads, 2, seed=0) == sample(heads, 2, seed=0) and len(sample(heads, 9, 0)) == 3
    effects_PLN = np.array([[[0.5, 0.02, 0.04]], [[0.5, 0.0, 0.06]]])
    missed = missed_mass(effects_PLN, [(0, 1), (0, 2)], out_of=10)
    assert (missed["ruled_out"], missed["sampled"], missed["largest_in_sample"]) == (10, 2, 0.06)
    assert missed["estimated_mass"] == pytest.approx(0.3)
    assert missed_mass(effects_PLN, [], out_of=0)["estimated_mass"] == 0.0


def test_agreement():
    exact = np.linspace(0, 1, 20).reshape(4, 5)
    assert agreement(exact, exact**3) == {"heads": 20, "spearman": 1.0, "top": 2, "overlap": 1.0}
    opposite = agreement(exact, -exact)
    assert (opposite["spearman"], opposite["overlap"]) == (-1.0, 0.0)
    exact[1] = np.nan
    assert agreement(exact, np.ones((4, 5))) == {
        "heads": 15,
        "spearman": None,
        "top": 2,
        "overlap": None,
    }


def test_memory_bounds_the_pairs_and_heads_at_a_time():
    config = qwen3("1.7b")
    trace, stream = trace_bytes(config, 4096), stream_bytes(config, 4096)
    assert trace == 4 * 28 * 4096 * (2 * 2048 + 16 * 128 + 2 * 8 * 128)
    one = at_once(config, 4096, 8, 2.0 * trace)
    assert one.pairs == 1 and one.heads == trace // stream - 1
    two = at_once(config, 4096, 8, 4.1 * trace)
    assert two.pairs == 2 and two.heads * 2 * stream < 2.05 * trace
    assert at_once(config, 4096, 8, 1.0) == (1, 1)
    assert at_once(config, 64, 8, 1e15) == (8, 16)
    assert at_once(config, 4096, 8, 2.0 * trace, pairs=3).pairs == 3
    assert receiver_bytes(config, 8) < trace


def test_a_trace_is_no_larger_than_its_formula():
    pairs = random_pairs(FULL)
    found = trace_pairs(FULL, random_params(FULL), pairs)
    kept = [*found.residual_BTD[:-1], *found.mixer_out_BTD, *found.change_BTNH]
    assert sum(x.nbytes for x in kept) <= len(pairs.tokens_BT) * trace_bytes(FULL, LENGTH)

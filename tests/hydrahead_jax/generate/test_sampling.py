"""Checks which tokens can be drawn, and how often."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hydrahead_jax.errors import UserError
from hydrahead_jax.generate import Sampling, sample

PROBABILITIES = np.array([0.05, 0.4, 0.1, 0.15, 0.3], np.float32)
ROWS = 4000


def frequencies(**settings) -> np.ndarray:
    logits_BV = jnp.broadcast_to(jnp.log(PROBABILITIES), (ROWS, 5))
    tokens_B = sample(logits_BV, jax.random.key(0), Sampling(**settings))
    return np.bincount(tokens_B, minlength=5) / ROWS


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (dict(temperature=0.0), [0, 1, 0, 0, 0]),
        (dict(temperature=1.0), PROBABILITIES),
        (dict(temperature=0.5), PROBABILITIES**2 / np.sum(PROBABILITIES**2)),
        (dict(temperature=1.0, top_k=1), [0, 1, 0, 0, 0]),
        (dict(temperature=1.0, top_k=2), [0, 4 / 7, 0, 0, 3 / 7]),
        (dict(temperature=1.0, top_k=9), PROBABILITIES),
        (dict(temperature=1.0, top_p=0.01), [0, 1, 0, 0, 0]),
        (dict(temperature=1.0, top_p=0.65), [0, 4 / 7, 0, 0, 3 / 7]),
        (dict(temperature=1.0, top_p=0.75), [0, 0.4 / 0.85, 0, 0.15 / 0.85, 0.3 / 0.85]),
        (dict(temperature=1.0, top_p=1.0), PROBABILITIES),
        (dict(temperature=1.0, top_k=3, top_p=0.5), [0, 4 / 7, 0, 0, 3 / 7]),
    ],
)
def test_frequencies(settings, wanted):
    """Frequencies are within four standard deviations; what is cut off never comes."""
    found = frequencies(**settings)
    assert not np.any(found[np.asarray(wanted) == 0])
    assert np.max(np.abs(found - wanted)) < 4 * 0.5 / np.sqrt(ROWS)


def test_a_row_s_draw_does_not_depend_on_the_other_rows():
    logits_BV = jax.random.normal(jax.random.key(1), (8, 50))
    draw = lambda logits_BV: sample(logits_BV, jax.random.key(2), Sampling(temperature=1.0))
    np.testing.assert_array_equal(draw(logits_BV)[:3], draw(logits_BV[:3]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(temperature=-0.5), "temperature is -0.5; give 0"),
        (dict(top_k=0), "top_k is 0; give 1 or more"),
        (dict(top_p=0.0), "top_p is 0.0; give a probability"),
        (dict(top_p=1.5), "top_p is 1.5; give a probability"),
    ],
)
def test_numbers_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Sampling(**settings)

import jax.numpy as jnp
import numpy as np
import pytest

from hydrahead_jax.mixers import HeadEdit
from hydrahead_jax.selection.effects import attribution, reference
from hydrahead_jax.selection.effects.trace import trace_pairs
from tests.hydrahead_jax.selection.toy import CONFIGS, every_head, random_pairs, random_params

STEP = 0.005


def _slope(config, params, pairs, frozen_LN, head) -> np.ndarray:
    """Returns -dm/de where the head is (1 - e) O(x) + e O(x'), by central difference."""
    _, (clean, corrupted) = reference._both(config, params, pairs)

    def readout(e: float):
        mask_LN, values = frozen_LN.copy(), list(clean)
        layer, n = head
        mask_LN[layer, n] = 1
        moved = clean[layer][:, :, n] + e * (corrupted[layer] - clean[layer])[:, :, n]
        values[layer] = values[layer].at[:, :, n].set(moved)
        edits = {
            k: HeadEdit(jnp.asarray(mask_LN[k], jnp.float32)[None], value)
            for k, value in enumerate(values)
        }
        return np.asarray(
            reference._run(config, params, pairs, pairs.tokens_BT, edits)[0], np.float64
        )

    return -(readout(STEP) - readout(-STEP)) / (2 * STEP)


@pytest.mark.parametrize(
    ("name", "live"),
    [
        *(("grouped", live) for live in ("none", "all", "some")),
        *((name, "all") for name in ("hybrid", "native hybrid")),
    ],
)
def test_drops_are_the_slopes_at_x(name, live):
    config = CONFIGS[name]
    pairs, params = random_pairs(config), random_params(config, heads=3.0)
    listening = ((), config.softmax_heads(1)[:1], config.softmax_heads(2)[:1])
    given = {"none": ((),) * 3, "all": "all", "some": listening}[live]
    frozen_LN = np.zeros((3, 4)) if live == "all" else np.ones((3, 4))
    if live == "some":
        for layer, heads in enumerate(listening):
            frozen_LN[layer, list(heads)] = 0
    found = trace_pairs(config, params, pairs)
    drops_BX = np.asarray(attribution.drops(config, params, found, given)).reshape(5, -1)
    exact_BX = np.stack(
        [_slope(config, params, pairs, frozen_LN, head) for head in every_head(config)], axis=1
    )
    scale = np.abs(exact_BX).max()
    assert scale > 1e-2
    np.testing.assert_allclose(drops_BX, exact_BX, atol=5e-3 * scale)


def test_between_x_and_its_counterfactual_the_slopes_add_up_to_the_whole_way():
    """The slope integrates to the difference of two readouts, with every head frozen.

    They are m(x), and the readout of x' with the tokens of x at the readout positions.
    """
    config = CONFIGS["grouped"]
    pairs, params = random_pairs(config), random_params(config, heads=3.0)
    found = trace_pairs(config, params, pairs)
    points = (np.arange(16) + 0.5) / 16
    sums = [
        np.asarray(attribution.drops(config, params, found, ((),) * 3, fraction=float(f))).sum(
            axis=(1, 2)
        )
        for f in points
    ]
    whole_B = np.asarray(found.clean_B - found.corrupted_B)
    np.testing.assert_allclose(np.mean(sums, axis=0), whole_B, atol=2e-3)

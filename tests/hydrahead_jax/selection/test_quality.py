import numpy as np
import pytest

from hydrahead_jax.head_plan import HeadPlan
from hydrahead_jax.selection.plans.quality import plan_quality
from tests.hydrahead_jax.selection.made_scores import made_scores

EFFECT_LN = [[1.0, 0.0, 0.5, 0.4], [0.9, 0.2, 0.0, 0.0]]
HEAD_BYTES = 2 * 128 * 2


@pytest.fixture(scope="module")
def quality(planted_config):
    plan = HeadPlan(fa_heads=((0, 2), (0,)), query_heads=4, kv_heads=2, strategy="x")
    return plan_quality(made_scores([EFFECT_LN]), planted_config, plan)


def test_the_best_heads_one_after_another(quality):
    """Two query heads read each KV head."""
    assert [cost.fa_heads for cost in quality.naive] == list(range(1, 9))
    assert [cost.kv_heads for cost in quality.naive] == [1, 2, 3, 3, 3, 3, 4, 4]
    mass = np.cumsum([1.0, 0.9, 0.5, 0.4, 0.2, 0.0, 0.0, 0.0]) / 3.0
    np.testing.assert_allclose([cost.score_mass for cost in quality.naive], mass)
    assert quality.naive[2].kv_bytes_per_token == 3 * HEAD_BYTES == 3 * quality.kv_head_bytes


def test_the_best_use_of_each_kv_head(quality):
    """One KV head holds 1.1 of 3, two hold 2.1, and no plan needs the fourth."""
    assert quality.aware.kv_heads_X.tolist() == [1, 2, 3]
    np.testing.assert_allclose(quality.aware.score_mass_X, [1.1 / 3, 2.1 / 3, 1.0], atol=1e-4)


def test_the_plan_and_the_budgets(quality):
    assert quality.chosen.kv_heads == 3 and quality.chosen.score_mass == pytest.approx(2.4 / 3)
    assert [row.ratio for row in quality.budgets] == ["1:1", "3:1", "7:1"]
    assert [row.naive.fa_heads for row in quality.budgets] == [4, 2, 1]
    for row in quality.budgets:
        assert row.aware.fa_heads == row.naive.fa_heads
        assert row.aware.kv_heads <= row.naive.kv_heads
        assert row.aware.score_mass >= 0.98 * row.naive.score_mass

import numpy as np
import pytest

from benchmarks.allocation import (
    BY_SCORE,
    DISTRIBUTIONS,
    NO_LOSS,
    OPEN,
    WITHIN,
    cost_table,
    curve_table,
    drawn_scores,
    measure,
)
from hydrahead_jax.config import qwen3

CONFIG = qwen3("1.7b")


def test_a_quarter_of_the_bytes_costs_at_most_two_percent_of_the_mass():
    """The scores are like the paper's, at 3:1."""
    for seed in (100, 101):
        plans = measure("like the paper's", "3:1", seed, CONFIG)["plans"]
        naive, aware = plans[BY_SCORE], plans[WITHIN]
        assert naive["fa_heads"] == aware["fa_heads"] == 112
        assert aware["kv_bytes_per_token"] <= 0.75 * naive["kv_bytes_per_token"]
        assert aware["score_mass"] >= 0.98 * naive["score_mass"]
        assert plans[OPEN]["kv_bytes_per_token"] <= 0.75 * naive["kv_bytes_per_token"]


def test_the_tables_say_what_the_draws_say():
    draw = measure("uniform", "7:1", 0, CONFIG)
    kept = [share for share in draw["kept"].values() if share is not None]
    assert kept[0] == pytest.approx(1.0, abs=1e-4) and kept == sorted(kept, reverse=True)
    plans = draw["plans"]
    assert plans[NO_LOSS]["score_mass"] == pytest.approx(plans[BY_SCORE]["score_mass"], abs=1e-4)
    line = [cell.strip() for cell in cost_table([draw, draw]).splitlines()[-1].split("|")]
    assert line[1:3] == ["uniform", "7:1"] and line[4] == str(plans[BY_SCORE]["kv_heads"])
    assert line[7] == str(plans[WITHIN]["kv_heads"])
    assert curve_table([draw, draw]).splitlines()[-1].startswith("| uniform | 7:1 | 100.0% |")


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_draws_are_what_their_words_say(name):
    scores = drawn_scores(name, CONFIG, 0)
    score_LN = scores.score_LN
    assert score_LN.shape == (28, 16) and score_LN.min() == 0 and score_LN.max() == 1
    if name == "like the paper's":
        assert 15 < scores.critical_LN.sum() < 50 and 0.5 < scores.gini_L.mean() < 0.75
    if name == "nearly equal":
        assert np.sort(score_LN.ravel())[1] > 0.89
    if name == "opposed":
        assert score_LN[:, 0::2].min() > score_LN[:, 1::2].max()

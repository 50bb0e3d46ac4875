"""Checks the agreement of scores from made effects, whose answers are known."""

import json

import numpy as np
import pytest

from hydrahead_jax.errors import UserError
from hydrahead_jax.selection.checks.stability import StabilitySettings, agreement, stability
from hydrahead_jax.selection.probes.retrieval import SubProbe
from hydrahead_jax.selection.scores.pair_effects import PairEffects
from hydrahead_jax.selection.scores.scores import head_scores

L, N, B = 4, 16, 24
PROBES = (SubProbe(name="a"), SubProbe(name="b"))
SOFTMAX_LN = np.ones((L, N), bool)


def effects(*draws_BLN: np.ndarray) -> list[PairEffects]:
    """Makes effects for each sub-probe; both get the same ones if there is one draw only."""
    readouts = lambda draw_BLN: (np.ones(len(draw_BLN)), -np.ones(len(draw_BLN)))
    made = [PairEffects(draw, None, None, *readouts(draw), 0) for draw in draws_BLN]
    return made * (len(PROBES) // len(made))


def signal(heads: int) -> np.ndarray:
    """Returns different effects above the threshold for the first heads, 0 for all others."""
    effect_X = np.zeros(L * N)
    effect_X[:heads] = np.linspace(0.9, 0.05, heads)
    return effect_X.reshape(L, N)


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.02, 1.0, (B, L, N))


def means(row: dict) -> list[float]:
    return [row[name]["mean"] for name in ("spearman_critical", "spearman_all", "jaccard")]


def test_identical_pairs_agree_however_few():
    result = stability(PROBES, effects(np.broadcast_to(signal(10), (B, L, N))), SOFTMAX_LN)
    assert [row["pairs"] for row in result["over_pairs"]] == [1, 2, 3, 6, 12, 24]
    for row in (*result["over_pairs"], *result["split_half"]):
        np.testing.assert_allclose(means(row), 1.0)
    assert result["critical_heads"] == 10 and result["reasons"] == []
    assert result["split_half"][0]["pairs"] == 12


def test_halves_of_pure_noise_do_not_agree_and_a_part_agrees_with_the_whole_by_what_it_shares():
    twice = effects(noise(0), noise(1))
    result = stability(PROBES, twice, SOFTMAX_LN, StabilitySettings(draws=20))
    assert abs(result["split_half"][0]["spearman_all"]["mean"]) < 0.1
    over_pairs = [row["spearman_all"]["mean"] for row in result["over_pairs"]]
    assert over_pairs == sorted(over_pairs) and over_pairs[0] < 0.4
    assert over_pairs[-1] == pytest.approx(1.0)


def test_the_range_over_draws_holds_the_mean():
    noisy = effects(signal(10) + 0.3 * noise(0), signal(10) + 0.3 * noise(1))
    for row in stability(PROBES, noisy, SOFTMAX_LN)["over_pairs"][:-1]:
        spread = row["spearman_all"]
        assert spread["low"] < spread["mean"] < spread["high"]


def test_more_pairs_than_are_usable_are_left_out():
    result = stability(PROBES, effects(noise()[:7], noise()), SOFTMAX_LN)
    assert result["usable_pairs"] == 7 and result["split_half"][0]["pairs"] == 3
    assert [row["pairs"] for row in result["over_pairs"]] == [1, 2, 3, 6]


@pytest.mark.parametrize(
    ("heads", "reasons"),
    [
        (2, ["2 of 64 heads are critical"]),
        (0, ["0 of 64 heads are critical", "all heads have the same score"]),
    ],
)
def test_where_there_is_nothing_to_rank_the_number_is_missing_and_the_reason_given(heads, reasons):
    result = stability(PROBES, effects(np.broadcast_to(signal(heads), (B, L, N))), SOFTMAX_LN)
    row = result["over_pairs"][0]
    assert row["spearman_critical"] is None
    assert (row["spearman_all"] is None) == (row["jaccard"] is None) == (heads == 0)
    assert len(result["reasons"]) == len(reasons)
    assert all(a.startswith(b) for a, b in zip(result["reasons"], reasons, strict=True))
    assert "NaN" not in json.dumps(result, allow_nan=False)


def test_lengths_are_compared_with_the_selection_and_delta_rule_heads_do_not_count():
    softmax_LN = SOFTMAX_LN.copy()
    softmax_LN[0, 0] = False
    of = lambda draw_BLN: head_scores(PROBES, effects(draw_BLN), softmax_LN)
    here_BLN = np.broadcast_to(signal(10), (B, L, N))
    there = {512: of(here_BLN[:, :, ::-1]), 64: of(here_BLN)}
    result = stability(PROBES, effects(here_BLN), softmax_LN, at_lengths=there)
    assert result["critical_heads"] == 9
    assert [row["length"] for row in result["over_length"]] == [64, 512]
    assert means(result["over_length"][0]) == [pytest.approx(1.0)] * 3
    assert result["over_length"][1]["jaccard"]["mean"] < 0.5


def test_agreement_by_hand():
    """Of three critical heads the last two change places, and one falls out of the best three."""
    of = lambda *e: head_scores(
        PROBES, effects(np.array(e).reshape(1, 1, 5)), np.ones((1, 5), bool)
    )
    one, other = of(0.9, 0.5, 0.3, 0.0, 0.0), of(0.9, 0.3, 0.5, 0.4, 0.0)
    found = agreement(one, other, one.critical_LN)
    assert found.spearman_critical == pytest.approx(0.5)
    assert found.jaccard == 0.5


@pytest.mark.parametrize("settings", [{"draws": 0}, {"pairs": (0, 1)}, {"lengths": (0,)}])
def test_settings_are_checked(settings):
    with pytest.raises(UserError, match="at least one draw, pair and token"):
        StabilitySettings(**settings)

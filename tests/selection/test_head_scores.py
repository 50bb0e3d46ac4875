import numpy as np
import pytest

from hydrahead_jax.errors import UserError
from hydrahead_jax.selection import HeadScores
from hydrahead_jax.selection.ranking import random_order, ranking
from hydrahead_jax.selection.scores import consistency, gini, min_max


def make_scores(raw_PLN, capabilities=None) -> HeadScores:
    raw_PLN = np.asarray(raw_PLN, float)
    P = len(raw_PLN)
    return HeadScores(
        probes=tuple(f"probe_{i}" for i in range(P)),
        capabilities=capabilities or ("retrieval",) * P,
        effect_PLN=np.clip(raw_PLN, 0, 1),
        raw_PLN=raw_PLN,
        clean_P=np.arange(P) + 0.1,
        corrupted_P=-np.arange(P) / 3,
    )


def test_kappa_min_max_gini_by_hand():
    raw_PLN = np.array([[[0.5, -0.02, 0.0099]], [[0.01, 0.0, -0.01]]])
    np.testing.assert_array_equal(consistency(raw_PLN), [[1.0, 0.5, 0.5]])
    np.testing.assert_allclose(min_max(np.array([[2.0, 4.0], [3.0, 2.5]])), [[0, 1], [0.5, 0.25]])
    np.testing.assert_array_equal(min_max(np.full((2, 2), 0.3)), np.zeros((2, 2)))
    assert gini(np.array([1.0, 1.0, 1.0, 1.0])) == 0.0
    assert gini(np.array([0.0, 5.0, 0.0, 0.0])) == pytest.approx(0.75)
    assert gini(np.array([3.0, 1.0])) == pytest.approx(0.25)
    assert gini(np.zeros(3)) == 0.0


def test_score_is_effect_times_kappa_fused_over_capabilities():
    scores = make_scores(
        [
            [[0.8, 0.2], [0.0, 0.004]],
            [[0.4, 0.0], [0.0, 0.0]],
            [[0.0, 0.0], [0.5, 0.25]],
        ],
        ("retrieval", "retrieval", "general"),
    )
    np.testing.assert_allclose(scores.effect_LN("retrieval"), [[0.6, 0.1], [0.0, 0.002]])
    np.testing.assert_allclose(scores.kappa_LN("retrieval"), [[1.0, 0.5], [0.0, 0.0]])
    np.testing.assert_allclose(scores.capability_LN("retrieval"), [[0.6, 0.05], [0, 0]])
    np.testing.assert_allclose(scores.score_LN, [[0.5, 0.5 * 0.05 / 0.6], [0.5, 0.25]], rtol=1e-12)


def test_critical_and_convertible_counts_and_gini():
    scores = make_scores([[[0.5, 0.012], [-0.02, 0.009]], [[0.5, 0.0], [0.0, 0.0]]])
    np.testing.assert_array_equal(scores.critical_LN, [[True, False], [False, False]])
    np.testing.assert_array_equal(scores.convertible_LN, [[False, False], [False, True]])
    np.testing.assert_allclose(scores.gini_L, [0.5 - 0.006 / 0.506, 0.5])


def test_csv_round_trip_has_a_baseline_row(tmp_path):
    raw_PLN = np.random.default_rng(0).normal(size=(3, 2, 4)).astype(np.float32)
    scores = make_scores(raw_PLN, ("retrieval", "retrieval", "general"))
    path = tmp_path / "scores.csv"
    scores.save_csv(path)
    header, baseline, first, *_ = path.read_text().splitlines()
    assert header.startswith("layer,head,score,retrieval:probe_0:effect,")
    assert baseline.startswith("-1,-1,,,") and baseline.endswith(str(-2 / 3))
    assert first.startswith("0,0,")
    loaded = HeadScores.load_csv(path)
    assert (loaded.probes, loaded.capabilities) == (scores.probes, scores.capabilities)
    for name in ("effect_PLN", "raw_PLN", "clean_P", "corrupted_P", "score_LN"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(scores, name))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda lines: [],
        lambda lines: ["layer,head", *lines[1:]],
        lambda lines: [lines[0], *lines[2:]],
        lambda lines: lines[:-2] + lines[-1:],
        lambda lines: [*lines[:-1], lines[-1].rsplit(",", 4)[0]],
        lambda lines: [*lines[:-1], lines[-1].replace("0.5", "much")],
    ],
)
def test_a_spoiled_csv_is_a_user_error(tmp_path, spoil):
    path = tmp_path / "scores.csv"
    make_scores(np.full((2, 2, 2), 0.5)).save_csv(path)
    path.write_text("\n".join(spoil(path.read_text().splitlines())) + "\n")
    with pytest.raises(UserError, match=r"scores\.csv is not a table of head scores"):
        HeadScores.load_csv(path)


def test_a_missing_csv_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"none\.csv"):
        HeadScores.load_csv(tmp_path / "none.csv")


def test_ranking_by_score_then_by_mean_effect():
    raw_LN = np.array([[0.3, 0.001, 0.0, 0.009], [0.005, 0.5, 0.0, -0.008]])
    ranked = ranking(make_scores([raw_LN]), kv_heads=4)
    assert ranked[:6] == [(1, 1), (0, 0), (0, 3), (1, 3), (1, 0), (0, 1)]
    assert sorted(ranked) == list(np.ndindex(2, 4))


def test_ties_share_a_kv_head_before_they_are_drawn():
    raw_LN = np.zeros((3, 8))
    raw_LN[1, 5] = 0.7
    scores = make_scores([raw_LN])
    for seed in range(5):
        assert ranking(scores, kv_heads=4, seed=seed)[:2] == [(1, 5), (1, 4)]


def test_rounding_noise_is_a_tie():
    noise_LN = np.random.default_rng(0).normal(size=(3, 8)) * 1e-7
    by_noise = sorted(np.ndindex(3, 8), key=lambda head: -abs(noise_LN[head]))
    assert ranking(make_scores([noise_LN]), kv_heads=8, seed=1) == random_order(3, 8, 1)
    assert ranking(make_scores([noise_LN]), kv_heads=8, seed=1) != by_noise


def test_ties_do_not_follow_the_index():
    scores = make_scores(np.zeros((1, 4, 8)))
    first = [ranking(scores, kv_heads=8, seed=seed)[0] for seed in range(20)]
    assert len(set(first)) > 10
    assert ranking(scores, kv_heads=8, seed=3) == ranking(scores, kv_heads=8, seed=3)

import numpy as np
import pytest

from hydrahead_jax.selection.scores.ranking import random_order, ranking
from tests.hydrahead_jax.selection.made_scores import made_scores


def test_by_score_then_by_mean_effect():
    raw_LN = np.array([[0.3, 0.001, 0.0, 0.009], [0.005, 0.5, 0.0, -0.008]])
    ranked = ranking(made_scores([raw_LN]), kv_heads=4)
    assert ranked[:6] == [(1, 1), (0, 0), (0, 3), (1, 3), (1, 0), (0, 1)]
    assert sorted(ranked) == list(np.ndindex(2, 4))


def test_then_by_total_effect():
    total_LN = np.array([[0.0, 0.2, np.nan], [-0.5, 0.1, 0.0]])
    scores = made_scores(np.zeros((1, 2, 3)), total_PLN=[total_LN])
    assert ranking(scores, kv_heads=3)[:3] == [(1, 0), (0, 1), (1, 1)]


def test_then_by_the_general_score():
    """Two capabilities swap their effects, so score and mean effect are equal everywhere."""
    retrieval_LN = np.array([[0.8, 0.5, 0.2, 0.0]])
    general_LN = retrieval_LN[:, ::-1]
    scores = made_scores([retrieval_LN, general_LN], ("retrieval", "general"))
    np.testing.assert_allclose(scores.score_LN[0, 0], scores.score_LN[0, 3])
    for seed in range(4):
        ranked = ranking(scores, kv_heads=4, seed=seed)
        assert ranked.index((0, 3)) < ranked.index((0, 0))
        assert ranked.index((0, 2)) < ranked.index((0, 1))


@pytest.mark.parametrize("kv_heads", [1, 2, 4, 8])
def test_ties_share_a_kv_head_before_they_are_drawn(kv_heads):
    raw_LN = np.zeros((3, 8))
    raw_LN[1, 5] = 0.7
    group = 8 // kv_heads
    scores = made_scores([raw_LN])
    firsts = set()
    for seed in range(5):
        ranked = ranking(scores, kv_heads=kv_heads, seed=seed)
        shared = [(1, n) for n in range(8) if n // group == 5 // group]
        assert ranked[0] == (1, 5) and set(ranked[:group]) == set(shared)
        blocks = [ranked[i : i + group] for i in range(0, 24, group)]
        assert all(len({(l, n // group) for l, n in block}) == 1 for block in blocks)
        firsts.add(ranked[group] if group < 24 else None)
    assert len(firsts) > 1


def test_rounding_noise_is_a_tie():
    noise_LN = np.random.default_rng(0).normal(size=(3, 8)) * 1e-7
    by_noise = sorted(np.ndindex(3, 8), key=lambda head: -abs(noise_LN[head]))
    assert ranking(made_scores([noise_LN]), kv_heads=8, seed=1) == random_order(3, 8, 1)
    assert ranking(made_scores([noise_LN]), kv_heads=8, seed=1) != by_noise


def test_ties_do_not_follow_the_index():
    scores = made_scores(np.zeros((1, 4, 8)))
    first = [ranking(scores, kv_heads=8, seed=seed)[0] for seed in range(20)]
    assert len(set(first)) > 10
    assert ranking(scores, kv_heads=8, seed=3) == ranking(scores, kv_heads=8, seed=3)


def test_only_softmax_heads_are_ranked():
    softmax_LN = np.array([[True, False], [False, False], [True, True]])
    scores = made_scores(np.full((1, 3, 2), 0.5), softmax_LN=softmax_LN)
    assert sorted(ranking(scores, kv_heads=1)) == [(0, 0), (2, 0), (2, 1)]

import logging

import numpy as np
import pytest

from hydrahead_jax.config import FullAttention, ModelConfig, qwen3
from hydrahead_jax.errors import UserError
from hydrahead_jax.selection import STRATEGIES, HeadScores, allocate, budget, receivers_kept
from tests.selection.made_scores import made_scores

SHAPES = [(2, 4, 2), (4, 8, 4), (3, 6, 1), (28, 16, 8)]


def _config(layers: int, query_heads: int, kv_heads: int) -> ModelConfig:
    return ModelConfig(
        vocab=10,
        embed=8,
        mlp=8,
        query_heads=query_heads,
        kv_heads=kv_heads,
        head_dim=4,
        mixers=(FullAttention(),) * layers,
    )


def _scores(effect_LN) -> HeadScores:
    return made_scores([effect_LN])


def _random_scores(config: ModelConfig) -> HeadScores:
    effect_LN = np.random.default_rng(0).exponential(
        0.003, size=(config.layers, config.query_heads)
    )
    return _scores(np.clip(effect_LN, 0, 1))


def test_budget():
    assert budget(qwen3("1.7b"), "3:1") == 112
    assert budget(qwen3("1.7b"), "7:1") == 56
    assert budget(_config(4, 8, 4), "3:1") == 8
    assert budget(_config(3, 6, 1), "0:1") == 18
    for ratio in ("3", "3:0", "a:b", "3:1:1", "-1:2", ""):
        with pytest.raises(UserError, match="such as 3:1"):
            budget(_config(4, 8, 4), ratio)
    with pytest.raises(UserError, match="leaves no softmax head of 8"):
        budget(_config(2, 4, 2), "31:1")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_plan_has_the_budget_the_shape_and_the_seed(strategy, shape):
    config = _config(*shape)
    scores = _random_scores(config)
    fa_heads = config.layers * max(1, config.query_heads // 4)
    plan = allocate(scores, config, strategy, fa_heads=fa_heads, seed=1)
    assert plan.count == fa_heads and plan.strategy == strategy
    assert len(plan.student(config).mixers) == config.layers
    assert plan == allocate(scores, config, strategy, fa_heads=fa_heads, seed=1)
    everything = allocate(
        _scores(np.zeros(shape[:2])), config, strategy, fa_heads=shape[0] * shape[1]
    )
    assert everything.fa_heads == (tuple(range(shape[1])),) * shape[0]


@pytest.mark.parametrize("strategy", ["global-random", "fixed", "random-without-receivers"])
def test_draws_differ_by_seed(strategy):
    config = _config(4, 8, 4)
    scores = _scores(np.zeros((4, 8)))
    plans = {allocate(scores, config, strategy, fa_heads=8, seed=s).fa_heads for s in range(10)}
    assert len(plans) > 5


def test_global_interp_keeps_the_best_and_one_per_layer(caplog):
    config = _config(3, 4, 4)
    scores = _scores([[0.9, 0.8, 0.7, 0.6], [0.0, 0.0, 0.02, 0.0], [0.0, 0.5, 0.0, 0.0]])
    free = allocate(scores, config, fa_heads=4, one_per_layer=False)
    assert free.fa_heads == ((0, 1, 2, 3), (), ())
    with caplog.at_level(logging.WARNING):
        plan = allocate(scores, config, fa_heads=4)
    assert plan.fa_heads == ((0, 1), (2,), (1,))
    assert "layer and head (1, 2), (2, 1) replace (0, 2), (0, 3)" in caplog.text


def test_no_log_where_the_constraint_does_not_bind(caplog):
    config = _config(2, 4, 4)
    scores = _scores([[0.9, 0.0, 0.0, 0.0], [0.0, 0.0, 0.2, 0.1]])
    with caplog.at_level(logging.INFO):
        assert allocate(scores, config, fa_heads=3).fa_heads == ((0,), (2, 3))
    assert not caplog.text


def test_fixed_takes_the_same_heads_everywhere():
    plan = allocate(None, _config(4, 8, 4), "fixed", fa_heads=8, seed=2)
    assert len(set(plan.fa_heads)) == 1 and len(plan.fa_heads[0]) == 2


def test_global_random_is_not_constrained():
    config = _config(4, 8, 4)
    plans = [allocate(None, config, "global-random", fa_heads=4, seed=s) for s in range(10)]
    assert any(() in plan.fa_heads for plan in plans)


def test_random_without_receivers_misses_every_one():
    config = _config(2, 4, 2)
    scores = _scores([[0.0, 0.5, 0.01, 0.0], [0.009, 0.0, 0.0, 0.2]])
    for seed in range(10):
        plan = allocate(scores, config, "random-without-receivers", fa_heads=4, seed=seed)
        assert receivers_kept(scores, plan) == 0
    assert receivers_kept(scores, allocate(scores, config, fa_heads=4)) == 3
    with pytest.raises(UserError, match="only 5 heads are no receivers, the budget is 6"):
        allocate(scores, config, "random-without-receivers", fa_heads=6)


@pytest.mark.parametrize(
    ("strategy", "fa_heads", "scored", "message"),
    [
        ("best", 4, True, "strategy 'best' is none of global-interp, global-random"),
        ("global-interp", 0, True, "a budget of 0 softmax heads must be 1 to 8"),
        ("global-random", 9, True, "a budget of 9 softmax heads must be 1 to 8"),
        ("global-interp", 4, False, "global-interp needs head scores"),
        ("random-without-receivers", 4, False, "needs head scores"),
        ("global-interp", 1, True, "1 softmax heads are fewer than 2 layers"),
        ("fixed", 3, True, "multiple of 2 layers, not 3"),
    ],
)
def test_wrong_requests_are_user_errors(strategy, fa_heads, scored, message):
    scores = _scores(np.zeros((2, 4))) if scored else None
    with pytest.raises(UserError, match=message):
        allocate(scores, _config(2, 4, 2), strategy, fa_heads=fa_heads)


def test_scores_of_another_model_are_a_user_error():
    with pytest.raises(UserError, match="scores are for 3 layers of 4 heads, the model has 2 of 4"):
        allocate(_scores(np.zeros((3, 4))), _config(2, 4, 2), fa_heads=4)
